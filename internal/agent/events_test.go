package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"sft"
	"sft/internal/api"
	"sft/internal/audit"
	"sft/internal/testenv"
)

func openTestSpool(t testing.TB, path string) *spool {
	t.Helper()
	s, err := openSpool(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func event(i int) api.Event {
	return api.Event{Kind: string(audit.AccountEnabled), Outcome: audit.Success, Time: testTime, Detail: map[string]string{"login": fmt.Sprint("user", i)}}
}

// spooled is what a spool holds, as "number login".
func spooled(s *spool) (list []string) {
	for _, e := range s.next(maxSpooled) {
		list = append(list, fmt.Sprint(e.Seq, " ", e.Detail["login"]))
	}
	return list
}

func numbered(from, to int) (list []string) {
	for i := from; i <= to; i++ {
		list = append(list, fmt.Sprint(i, " user", i))
	}
	return list
}

func fill(t testing.TB, s *spool, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		if err := s.add(event(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSpoolSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "buffer.db")
	s := openTestSpool(t, path)
	fill(t, s, 1, 5)
	if err := s.sent(2); err != nil {
		t.Fatal(err)
	}
	ids := s.next(10)
	s = openTestSpool(t, path)
	if got := spooled(s); !slices.Equal(got, numbered(3, 5)) {
		t.Errorf("after a restart it holds %q", got)
	}
	if got := s.next(10); got[0].ID != ids[0].ID {
		t.Error("an event has another id after a restart: it would be told twice")
	}
	fill(t, s, 6, 6)
	if err := s.sent(6); err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(s.file()); err != nil || i.Size() != 0 {
		t.Errorf("all was taken, and the file has %v, %v", i, err)
	}
	s = openTestSpool(t, path)
	fill(t, s, 7, 7)
	if got := spooled(s); !slices.Equal(got, numbered(7, 7)) {
		t.Errorf("numbers do not go on after everything was taken: %q", got)
	}
}

// A crash leaves any first part of what was being written. Whole events
// before it are there, the cut one is not, and its number is used again:
// nobody has heard of it.
func TestSpoolCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	s := openTestSpool(t, filepath.Join(dir, "a"))
	fill(t, s, 1, 4)
	whole, err := os.ReadFile(s.file())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "b")
	for n := range len(whole) + 1 {
		write(t, path+".1", whole[:n])
		lines := strings.Count(string(whole[:n]), "\n")
		s, err := openSpool(path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if got := spooled(s); !slices.Equal(got, numbered(1, lines)) {
			t.Fatalf("cut at byte %d of %d: it holds %q", n, len(whole), got)
		}
		if n%7 == 0 { // each is a sync
			fill(t, s, lines+1, lines+1)
			s.close()
			if s, err = openSpool(path, s.log); err != nil {
				t.Fatal(err)
			}
			if got := spooled(s); !slices.Equal(got, numbered(1, lines+1)) {
				t.Fatalf("cut at byte %d of %d, then written to: it holds %q", n, len(whole), got)
			}
		}
		s.close()
	}
}

func TestSpoolWithABadLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "buffer.db")
	s := openTestSpool(t, path)
	fill(t, s, 1, 3)
	b, err := os.ReadFile(s.file())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(b), "\n")
	write(t, s.file(), []byte(lines[0]+"garbage\n\n{}\n"+lines[2]))
	s = openTestSpool(t, path)
	if got := spooled(s); !slices.Equal(got, []string{"1 user1", "3 user3"}) {
		t.Errorf("it holds %q", got)
	}
	fill(t, s, 4, 4)
	if s = openTestSpool(t, path); len(spooled(s)) != 3 {
		t.Errorf("after another event it holds %q", spooled(s))
	}
}

func TestSpoolForgets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "buffer.db")
	s := openTestSpool(t, path)
	fill(t, s, 1, 3)
	if err := s.sent(1); err != nil {
		t.Fatal(err)
	}
	if err := s.forget(); err != nil {
		t.Fatal(err)
	}
	fill(t, s, 1, 1)
	s = openTestSpool(t, path)
	if got := spooled(s); !slices.Equal(got, numbered(1, 1)) {
		t.Errorf("the next record begins with %q", got)
	}
}

func TestSpoolIsCapped(t *testing.T) {
	s := openTestSpool(t, filepath.Join(t.TempDir(), "buffer.db"))
	s.unsent = make([]api.Event, maxSpooled-1)
	if err := s.ready(); err != nil {
		t.Error(err)
	}
	s.unsent = append(s.unsent, event(1))
	wantCode(t, "a full spool", s.ready(), sft.Unavailable)
	if p := s.problem(); !strings.Contains(p, "let sftd reach it") {
		t.Errorf("the problem is %q", p)
	}
}

// The platform's side of the spool, on the real platform.
func TestSpoolToPlatform(t *testing.T) {
	env := testenv.New(t)
	server := env.Server(testenv.Project, testenv.Facts("web01"))
	post := func(ctx context.Context, list []api.Event) error {
		return server.Do(ctx, "POST", "/v1/agent/events", api.EventsRequest{Events: list}, nil)
	}
	path := filepath.Join(t.TempDir(), "buffer.db")
	told := func() (list []string) {
		for _, e := range env.Events() {
			switch e.Kind {
			case audit.AccountEnabled:
				list = append(list, e.Detail["login"])
			case audit.EventsLost:
				list = append(list, "lost "+e.Detail["from"]+" to "+e.Detail["to"])
			}
		}
		return list
	}
	send := func(s *spool, post func(context.Context, []api.Event) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.run(ctx, post) })
		until(t, "everything is sent", func() bool { return s.waiting() == 0 })
		cancel()
		wg.Wait()
	}

	s := openTestSpool(t, path)
	fill(t, s, 1, 3)
	replies := 0
	send(s, func(ctx context.Context, list []api.Event) error {
		err := post(ctx, list)
		if replies++; err == nil && replies == 1 {
			return errors.New("the reply is lost")
		}
		return err
	})
	if replies != 2 {
		t.Errorf("it was sent %d times", replies)
	}
	fill(t, s, 4, 4)
	_ = post(t.Context(), s.next(1)) // sent, and killed before it was noted
	killed := s
	s = openTestSpool(t, path)
	send(s, post)
	if got := told(); !slices.Equal(got, []string{"user1", "user2", "user3", "user4"}) {
		t.Errorf("the platform was told %q", got)
	}

	fill(t, s, 5, 7)
	s.close()
	killed.close()
	if err := os.Remove(s.file()); err != nil {
		t.Fatal(err)
	}
	s = openTestSpool(t, path)
	fill(t, s, 8, 8)
	send(s, post)
	if got := told()[4:]; !slices.Equal(got, []string{"lost 5 to 5", "user8"}) && !slices.Equal(got, []string{"user8", "lost 5 to 5"}) {
		t.Errorf("after the file was removed the platform was told %q", got)
	}

	for i := 10; i < 30; i++ {
		e := event(i)
		if i == 17 || i == 25 {
			e.Kind = "no.such_kind"
		}
		if err := s.add(e); err != nil {
			t.Fatal(err)
		}
	}
	send(s, post)
	got := told()[6:]
	slices.Sort(got)
	var want []string
	for i := 10; i < 30; i++ {
		if i != 17 && i != 25 {
			want = append(want, fmt.Sprint("user", i))
		}
	}
	if len(got) != len(want)+2 || !slices.Equal(got[2:], want) {
		t.Errorf("with two that the platform refuses among them, it was told %q", got)
	}
}
