package audit

// Kinds are all that there are, in the order of the constants.
var Kinds = []Kind{
	TeamCreate, TeamSettings, UserCreate, UserUpdate, UserRemove, PasswordChange, KeyRotate, KeyDelete,
	GroupCreate, GroupUpdate, GroupDelete, UserAttribute, GroupAttribute, MemberAdd, MemberRemove, ProjectCreate,
	ProjectUpdate, ProjectDelete, ProjectGroup, ProjectUngroup, ProjectSelector, PreauthCreate, PreauthUpdate,
	TokenCreate, TokenDelete, CloudCreate, CloudDelete, SudoCreate, SudoUpdate, SudoRemove, SudoAttach, SudoDetach, ServiceCreate,
	ServiceRemove, ServerEnroll, ServerUnmanaged, ServerRemove, ServerReassign, ServerUpdate, ServerLabels,
	NameConflict, KeyConflict, DeviceKeyRotate, NameReuse, CARotate, CADrop, MasterKeyRotate, ClientEnroll,
	ClientRemove, ClientAssign, ClientUpdate, AuthTokenIssue, AuthTokenEnd, UserCredsIssue, HostCredsIssue,
	RDPSignerCreate, RDPFileSign, SessionStart, SessionEnd, SessionRefused, AccountCreated, AccountUpdated,
	AccountRemoved, AccountEnabled, AccountDisabled, AccountConflict, AccountRefused, AccountFailed,
	AccountPasswordReset, SSHLogin, EventsLost, AuditKeyCreate, AuditPrune, AuditExportRemove, ACMEAccountCreate,
	ACMEAccountRotate, PlatformCertificate, PlatformBackup, PlatformRestore,
}
