package export

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"sft/internal/audit"
)

// A webhook gets each batch as a POST, signed as Standard Webhooks says
// (standardwebhooks.com): HMAC-SHA256 over id, time and body, in three
// headers, for which there are libraries. The time makes an old one useless.
type webhook struct {
	url    *url.URL
	key    []byte
	client *http.Client
	now    func() time.Time
}

func newWebhook(u *url.URL, key []byte, conf *tls.Config, now func() time.Time) *webhook {
	if now == nil {
		now = time.Now
	}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10}
	return &webhook{u, key, &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // what is sent is for this receiver
	}}, now}
}

// Name leaves out the query: some keep a token there.
func (w *webhook) Name() string {
	return (&url.URL{Scheme: w.url.Scheme, Host: w.url.Host, Path: w.url.Path}).String()
}

func (w *webhook) Send(ctx context.Context, b audit.Batch) (err error) {
	defer func() { err = late(ctx, err) }()
	at := w.now().UTC()
	body := fmt.Appendf(nil, `{"type":"audit.batch","timestamp":%q,"data":[`, at.Format(time.RFC3339Nano))
	body = append(append(body, bytes.Join(b.Lines(), []byte(","))...), "]}\n"...)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url.String(), bytes.NewReader(body))
	if err != nil {
		return bare(err)
	}
	// The same batch has the same id, however often it is sent; others of the same
	// numbers, after a restore, have another.
	id := "audit"
	if n := len(b.Notes); n > 0 {
		last := b.Notes[n-1]
		id = fmt.Sprintf("audit_%d_%d_%x", b.Notes[0].First, last.Last, last.Hash[:8])
	}
	sec := fmt.Sprint(at.Unix())
	mac := hmac.New(sha256.New, w.key)
	fmt.Fprintf(mac, "%s.%s.%s", id, sec, body)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "sft-platform")
	r.Header.Set("webhook-id", id)
	r.Header.Set("webhook-timestamp", sec)
	r.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	resp, err := w.client.Do(r)
	if err != nil {
		return bare(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the receiver answers %d", resp.StatusCode)
	}
	// The answer is given. What follows is read, if it is short, so that the
	// connection can be used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxReply))
	return nil
}

// bare is the cause of an error without the URL, whose query may be secret.
func bare(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
