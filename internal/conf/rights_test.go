package conf

import "testing"

func TestJudge(t *testing.T) {
	const (
		me       = "S-1-5-21-1-2-3-1000"
		users    = "S-1-5-32-545"
		everyone = "S-1-1-0"
		full     = 0x1f01ff
		read     = 0x1200a9
	)
	ours := []right{{sid: sidSystem, mask: full}, {sid: sidAdministrators, mask: full}}
	with := func(r right) []right { return append([]right{r}, ours...) }
	tests := []struct {
		name    string
		r       rights
		trusted []string
		want    verdict
	}{
		{"as it is made", rights{owner: sidSystem, allow: ours}, nil, asMade},
		{"made by an administrator's script", rights{owner: sidAdministrators, allow: with(right{sid: sidCreatorOwner, mask: full, heir: true})}, nil, asMade},
		{"nobody has a right", rights{owner: sidSystem}, nil, asMade},
		{"Windows' own", rights{owner: sidTrustedInstaller, allow: with(right{sid: sidTrustedInstaller, mask: full})}, nil, asMade},
		{"the owner's own rights", rights{owner: sidSystem, allow: with(right{sid: sidOwnerRights, mask: full})}, nil, asMade},
		{"this account's", rights{owner: me, allow: with(right{sid: me, mask: full})}, []string{me}, asMade},
		{"users may read", rights{owner: sidSystem, allow: with(right{sid: users, mask: read})}, nil, readable},
		{"everyone may read by the generic name", rights{owner: sidSystem, allow: with(right{sid: everyone, mask: 0xa0000000})}, nil, readable},
		{"another user's", rights{owner: me, allow: ours}, nil, planted},
		{"nobody's", rights{allow: ours}, nil, planted},
		{"no list", rights{owner: sidSystem, all: true}, nil, planted},
		{"users may make files", rights{owner: sidSystem, allow: with(right{sid: users, mask: read | 2})}, nil, planted},
		{"users may make folders", rights{owner: sidSystem, allow: with(right{sid: users, mask: 4})}, nil, planted},
		{"users may delete what is in it", rights{owner: sidSystem, allow: with(right{sid: users, mask: 0x40})}, nil, planted},
		{"users may change the list", rights{owner: sidSystem, allow: with(right{sid: users, mask: 0x40000})}, nil, planted},
		{"users may take it", rights{owner: sidSystem, allow: with(right{sid: users, mask: 0x80000})}, nil, planted},
		{"everyone has all rights by the generic name", rights{owner: sidSystem, allow: with(right{sid: everyone, mask: 0x10000000})}, nil, planted},
		{"users may write what will be in it", rights{owner: sidSystem, allow: with(right{sid: users, mask: full, heir: true})}, nil, planted},
		{"whoever made it may write", rights{owner: sidSystem, allow: with(right{sid: sidCreatorOwner, mask: full})}, nil, planted},
		{"an entry of an unknown kind", rights{owner: sidSystem, allow: with(right{mask: read})}, nil, planted},
		{"one reads, one writes", rights{owner: sidSystem, allow: append(with(right{sid: users, mask: read}), right{sid: everyone, mask: full})}, nil, planted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.r.judge(tt.trusted...); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}
