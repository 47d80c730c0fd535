package launch

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"sft"
)

// killAfter is how long a program that was asked to end may take.
const killAfter = 3 * time.Second

// A process is a program that was started with a secret on its standard
// input.
type process struct {
	done   chan struct{} // closed when it has ended
	pid    int           // its number
	status int           // then: its exit status, or -1 if a signal ended it
	output *tail
}

// start starts argv. When ctx ends the program is asked to end, and made to
// after killAfter, or at once if idle says that it has done nothing yet; it is
// also asked to when this process dies. What it writes
// goes to log; the end of it is kept.
func start(ctx context.Context, argv []string, secret sft.Secret, log io.Writer, idle func() bool) (*process, error) {
	// A line is what these programs read. A secret that is more than one
	// would be cut, so that the rest went where nobody intended.
	if strings.ContainsAny(secret.Reveal(), "\r\n\x00") {
		return nil, &sft.Error{Code: sft.Internal, Msg: "the password that the server sent is not one line",
			Hint: "check that sft and sftd are of the same version"}
	}
	p := &process{done: make(chan struct{}), output: &tail{next: log}}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(secret.Reveal() + "\n")
	cmd.Stdout, cmd.Stderr = p.output, p.output
	cmd.WaitDelay = killAfter
	prepare(cmd)
	ask := cmd.Cancel
	cmd.Cancel = func() error {
		if idle() {
			return cmd.Process.Kill()
		}
		return ask()
	}
	started := make(chan error)
	go func() {
		// The kernel counts the death of the thread that started the
		// program as ours: it must live as long as the program.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
			if err = tie(p.pid); err != nil {
				cmd.Process.Kill()
				cmd.Wait()
			}
		}
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		p.status = cmd.ProcessState.ExitCode()
		if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited && p.status == 0 && ctx.Err() != nil {
			p.status = -1
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "start the RDP client: " + err.Error(), Err: err, Hint: "name another one with --client, or use --no-launch"}
	}
	return p, nil
}

// tail passes on what is written to it and keeps the last of it.
type tail struct {
	next io.Writer // may be nil
	mu   sync.Mutex
	last []byte
}

const tailSize = 8 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	t.last = append(t.last, b...)
	if n := len(t.last) - tailSize; n > 0 {
		t.last = append(t.last[:0], t.last[n:]...)
	}
	t.mu.Unlock()
	if t.next != nil {
		return t.next.Write(b)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.last)
}
