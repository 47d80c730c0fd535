package accounts

import (
	"testing"
	"unsafe"
)

// TestLayouts compares the structures with what a C compiler makes of the
// official headers (lm.h, dsrole.h, wtsapi32.h) for 64 bits: offsetof and
// sizeof of USER_INFO_1 and so on.
func TestLayouts(t *testing.T) {
	var (
		u0 userInfo0
		u1 userInfo1
		u4 userInfo4
		m0 userModalsInfo0
		g1 localGroupInfo1
		l0 localGroupMembersInfo0
		d  dsRolePrimaryDomainInfoBasic
		p  wtsProcessInfo
		w  wtsInfo
	)
	for _, tt := range []struct {
		name      string
		got, want uintptr
	}{
		{"USER_INFO_0", unsafe.Sizeof(u0), 8},
		{"USER_INFO_1", unsafe.Sizeof(u1), 56},
		{"usri1_priv", unsafe.Offsetof(u1.priv), 20},
		{"usri1_comment", unsafe.Offsetof(u1.comment), 32},
		{"usri1_flags", unsafe.Offsetof(u1.flags), 40},
		{"USER_INFO_4", unsafe.Sizeof(u4), 192},
		{"usri4_comment", unsafe.Offsetof(u4.comment), 32},
		{"usri4_flags", unsafe.Offsetof(u4.flags), 40},
		{"usri4_full_name", unsafe.Offsetof(u4.fullName), 64},
		{"usri4_acct_expires", unsafe.Offsetof(u4.expires), 104},
		{"usri4_user_sid", unsafe.Offsetof(u4.sid), 152},
		{"usri4_password_expired", unsafe.Offsetof(u4.passwordExpired), 184},
		{"USER_MODALS_INFO_0", unsafe.Sizeof(m0), 20},
		{"usrmod0_min_passwd_age", unsafe.Offsetof(m0.minAge), 8},
		{"LOCALGROUP_INFO_1", unsafe.Sizeof(g1), 16},
		{"LOCALGROUP_MEMBERS_INFO_0", unsafe.Sizeof(l0), 8},
		{"DSROLE_PRIMARY_DOMAIN_INFO_BASIC", unsafe.Sizeof(d), 48},
		{"DomainGuid", unsafe.Offsetof(d.domainGUID), 32},
		{"WTS_PROCESS_INFOW", unsafe.Sizeof(p), 24},
		{"pUserSid", unsafe.Offsetof(p.sid), 16},
		{"WTSINFOW", unsafe.Sizeof(w), 216},
		{"WTSINFOW.Domain", unsafe.Offsetof(w.domain), 96},
		{"WTSINFOW.UserName", unsafe.Offsetof(w.user), 130},
		{"WTSINFOW.ConnectTime", unsafe.Offsetof(w.connected), 176},
		{"WTSINFOW.LogonTime", unsafe.Offsetof(w.logon), 200},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, tt.got, tt.want)
		}
	}
}
