package webapi_test

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"sft/internal/api"
	"sft/internal/store"
	"sft/internal/testdb"
	"sft/internal/testenv"
	"sft/internal/webapi"
)

// BenchmarkConnect is one connect by one of 16 clients at once: through TLS,
// with the signature of the request, the decision, the certificate and the
// event on disk. PostgreSQL here does not wait for the disk.
func BenchmarkConnect(b *testing.B) {
	for name, url := range map[string]func(testing.TB) string{"sqlite": testdb.SQLite, "postgres": testdb.Postgres} {
		b.Run(name, func(b *testing.B) {
			e := testenv.NewOn(b, url(b))
			e.Grant(testenv.Project, "devs", false, "ann")
			e.Server(testenv.Project, testenv.Facts("web01"))
			s := webapi.New(e.Platform, slog.New(slog.DiscardHandler))
			s.Limits.Rate, s.Limits.Anonymous = 1e6, 1e6
			cert, err := e.Platform.Certificate(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			srv := &http.Server{Handler: s, TLSConfig: &tls.Config{GetCertificate: cert, NextProtos: []string{"h2", "http/1.1"}}}
			go srv.ServeTLS(ln, "", "")
			defer srv.Close()
			var clients []*testenv.Client
			for range 16 {
				c := e.Client("ann")
				c.Audience, c.URL = e.URL, "https://"+ln.Addr().String()
				clients = append(clients, c)
			}
			key, _ := testenv.Key(b)
			csr := testenv.CSR(b, key)
			var statements, transactions, next atomic.Int64
			e.DB.Watch(func(s store.Span) { statements.Add(int64(s.Statements)); transactions.Add(1) })
			b.SetParallelism(8)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				c := clients[int(next.Add(1))%len(clients)]
				for pb.Next() {
					var r api.ConnectReply
					if err := c.Do(b.Context(), "POST", base+"/connect", api.ConnectRequest{Target: "web01", Service: "rdp", CSR: csr}, &r); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(statements.Load())/float64(b.N), "statements/op")
			b.ReportMetric(float64(transactions.Load())/float64(b.N), "transactions/op")
		})
	}
}
