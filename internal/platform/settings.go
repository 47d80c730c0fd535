package platform

import (
	"context"
	"fmt"

	"sft"
	"sft/internal/audit"
	"sft/internal/policy"
	"sft/internal/store"
)

// TeamSettings are the settings of a team.
type TeamSettings struct {
	ClientSession   int64 `json:"client_session_duration"`
	WebSession      int64 `json:"web_session_duration"`
	AllowDeviceCode bool  `json:"allow_device_code"`
}

// GetSettings returns the settings of a team.
func (p *Platform) GetSettings(ctx context.Context, a Actor, r TeamRequest) (TeamSettings, error) {
	return read(ctx, p, a, r.Team, policy.Read, func(_ *store.Tx, k asker) (TeamSettings, error) {
		return TeamSettings{k.team.ClientSession, k.team.WebSession, k.team.AllowDeviceCode}, nil
	})
}

// SettingsRequest is PUT /v1/teams/{team}/settings; what is left out stays.
type SettingsRequest struct {
	Team            string `path:"team" json:"-"`
	ClientSession   *int64 `json:"client_session_duration"`
	WebSession      *int64 `json:"web_session_duration"`
	AllowDeviceCode *bool  `json:"allow_device_code"`
}

// UpdateSettings changes settings of a team. Sign-ins from then on go by them;
// those before keep their end.
func (p *Platform) UpdateSettings(ctx context.Context, a Actor, r SettingsRequest) (struct{}, error) {
	return struct{}{}, p.change(ctx, a, func(tx *store.Tx) (audit.Event, error) {
		k, err := p.as(tx, a, r.Team, policy.Administer)
		if err != nil {
			return audit.Event{}, err
		}
		t := k.team
		for _, s := range []struct {
			name     string
			from     *int64
			to       *int64
			min, max int64
		}{
			{"client_session_duration", r.ClientSession, &t.ClientSession, 3600, 90000},
			{"web_session_duration", r.WebSession, &t.WebSession, 1800, 90000},
		} {
			if s.from == nil {
				continue
			}
			if *s.from < s.min || *s.from > s.max {
				return audit.Event{}, &sft.Error{Code: sft.Invalid, Msg: fmt.Sprintf("%s is %d", s.name, *s.from), Hint: fmt.Sprintf("use %d to %d seconds", s.min, s.max)}
			}
			*s.to = *s.from
		}
		if r.AllowDeviceCode != nil {
			t.AllowDeviceCode = *r.AllowDeviceCode
		}
		if err := differ(k.team, t); err != nil {
			return audit.Event{}, err
		}
		e := p.event(a, audit.TeamSettings, t.Name, "", t.Name)
		e.Detail = map[string]string{}
		for name, v := range map[string][2]any{
			"client_session_duration": {k.team.ClientSession, t.ClientSession},
			"web_session_duration":    {k.team.WebSession, t.WebSession},
			"allow_device_code":       {k.team.AllowDeviceCode, t.AllowDeviceCode},
		} {
			if e.Detail[name] = fmt.Sprint(v[1]); v[0] != v[1] {
				e.Detail[name] += fmt.Sprintf(" (was %v)", v[0])
			}
		}
		return e, tx.SaveTeam(t)
	})
}
