package agent

import (
	"context"
	"errors"

	"sft"
	"sft/internal/accounts"
)

// maxHooks is how many hooks may wait to be run.
const maxHooks = 4096

// userHooks and groupHooks are the hooks of what was done about an account or
// a group.
var (
	userHooks = map[accounts.Change]string{accounts.Created: accounts.UserCreated, accounts.Updated: accounts.UserUpdated,
		accounts.Disabled: accounts.UserUpdated, accounts.Removed: accounts.UserDeleted}
	groupHooks = map[accounts.Change]string{accounts.Created: accounts.GroupCreated, accounts.Updated: accounts.GroupUpdated, accounts.Removed: accounts.GroupDeleted}
)

// hook has the scripts for an event run, after those before it. It waits for
// nothing: whatever a script does, nobody's removal waits for it.
func (a *Agent) hook(event, name string) {
	if event == "" {
		return
	}
	select {
	case a.hooks <- accounts.Hook{Event: event, Name: name}:
	default:
		a.log.Error("too many hooks wait; this one is not run", "event", event, "name", name)
		a.setProblem("hooks", &sft.Error{Code: sft.Unavailable, Msg: "too many hooks wait, and some were not run", Hint: "make the scripts in /usr/lib/sftd/hooks faster, and restart sftd"})
	}
}

// runHooks runs the hooks, one after the other, until ctx ends. One that fails
// is a problem of the host until that event's scripts run well again.
func (a *Agent) runHooks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-a.hooks:
			runs := a.acc.RunHooks(ctx, h)
			var errs []error
			for _, r := range runs {
				if errs = append(errs, r.Err); r.Err != nil {
					a.log.Warn("hook", "script", r.Script, "name", h.Name, "said", oneLine(r.Output, maxProblem), "error", r.Err)
				} else {
					a.log.Info("hook", "script", r.Script, "name", h.Name, "said", oneLine(r.Output, maxProblem))
				}
			}
			if ctx.Err() == nil {
				a.setProblem("hook "+h.Event, errors.Join(errs...))
			}
		}
	}
}
