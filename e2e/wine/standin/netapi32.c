/*
 * A stand-in for the part of netapi32.dll that sftd calls, for tests alone.
 *
 * It is built from the headers of mingw-w64, so that what our Go believes of
 * levels, structures, flags and encodings is judged by something else. It
 * checks what it is given as Microsoft's pages of each call say, and refuses
 * with the documented statuses. Memory that is freed is spoilt first.
 *
 * State is in plain files under the folder that the environment variable
 * SFT_STANDIN_DIR names, C:\standin if it is not set, so that every process,
 * and a test on the other side of Wine, sees and can plant the same accounts:
 *
 *   users\NAME      one line each, UTF-8: name=, password=, flags= (decimal),
 *                   comment=, fullname=, expires= (seconds since 1970;
 *                   4294967295 is never), sid=, set= (when the password was
 *                   set, seconds since 1970), bad= (wrong passwords since),
 *                   counter= (how often password or flags were set)
 *   groups\NAME     the SIDs of a local group's members, one a line
 *   next-rid        the last part of the SID that the next account gets
 *   policy          optional, one line each: minlength=, complexity=1,
 *                   minage= (seconds), lockout= (wrong passwords until then),
 *                   refuse-change=1 (changes are refused, resets are not),
 *                   refuse-disabled=1 (no change of a disabled account's),
 *                   controller=1 (a domain controller), page= (how many
 *                   entries an enumeration returns at once)
 *
 * Administrator and Guest and the groups of Windows are there from the start.
 *
 * Handing passwords on: while the file "wait-ack" exists, a call that makes an
 * account or sets its password or flags first writes users\NAME, and then
 * waits, for ten seconds at most, until the file ack-NAME (NAME as in users\)
 * holds the same decimal number as counter= does. A test copies the account to
 * where it is needed and then writes that file: complete, by a rename. Without
 * it the call ends with NERR_InternalError.
 */
#define UNICODE
#define _UNICODE
#include <windows.h>
#include <lm.h>
#include <dsrole.h>
#include <sddl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <wchar.h>

#define EXPORT __declspec(dllexport)
#define TEXTMAX 1024 /* of one field, in UTF-16 units */
#define USERMAX 512
#define NEVER 0xffffffffu
#define MACHINE L"S-1-5-21-1000-2000-3000-"

typedef struct {
	wchar_t file[MAX_PATH]; /* its name in users\ */
	wchar_t name[TEXTMAX], password[TEXTMAX], comment[TEXTMAX], fullname[TEXTMAX], sid[TEXTMAX];
	DWORD flags, expires, set, bad, counter;
} user;

static HANDLE mutex;

static void lock(void)
{
	if (!mutex)
		mutex = CreateMutexW(NULL, FALSE, L"Global\\sft-standin-netapi32");
	WaitForSingleObject(mutex, INFINITE);
}

static DWORD unlock(DWORD status)
{
	ReleaseMutex(mutex);
	return status;
}

/* place makes DIR\a\b. */
static const wchar_t *place(wchar_t *out, const wchar_t *a, const wchar_t *b)
{
	wchar_t dir[MAX_PATH];
	DWORD n = GetEnvironmentVariableW(L"SFT_STANDIN_DIR", dir, MAX_PATH);
	if (n == 0 || n >= MAX_PATH)
		wcscpy(dir, L"C:\\standin");
	_snwprintf(out, MAX_PATH, b ? L"%ls\\%ls\\%ls" : L"%ls\\%ls", dir, a, b);
	out[MAX_PATH - 1] = 0;
	return out;
}

static char *slurp(const wchar_t *path)
{
	FILE *f = _wfopen(path, L"rb");
	char *s;
	size_t n;
	if (!f)
		return NULL;
	s = calloc(1, 65536);
	n = fread(s, 1, 65535, f);
	s[n] = 0;
	fclose(f);
	return s;
}

/* spill replaces a file in one step. */
static BOOL spill(const wchar_t *path, const char *text)
{
	wchar_t next[MAX_PATH + 8];
	FILE *f;
	BOOL ok;
	int i;
	_snwprintf(next, MAX_PATH + 8, L"%ls.new", path);
	f = _wfopen(next, L"wb"); /* only one at a time is here: the lock is held */
	if (!f)
		return FALSE;
	ok = fwrite(text, 1, strlen(text), f) == strlen(text);
	ok = fclose(f) == 0 && ok;
	for (i = 0; ok && i < 200; i++) { /* a test may be reading the old one */
		if (MoveFileExW(next, path, MOVEFILE_REPLACE_EXISTING))
			return TRUE;
		Sleep(10);
	}
	return FALSE;
}

/* field finds "key=" at the start of a line, and copies what follows. */
static BOOL field(const char *s, const char *key, char *out, size_t max)
{
	size_t n = strlen(key);
	out[0] = 0;
	while (s && *s) {
		if (strncmp(s, key, n) == 0 && s[n] == '=') {
			size_t len = strcspn(s + n + 1, "\r\n");
			if (len >= max)
				len = max - 1;
			memcpy(out, s + n + 1, len);
			out[len] = 0;
			return TRUE;
		}
		s = strchr(s, '\n');
		if (s)
			s++;
	}
	return FALSE;
}

static void text(const char *s, const char *key, wchar_t *out)
{
	char b[TEXTMAX * 4];
	field(s, key, b, sizeof b);
	if (!MultiByteToWideChar(CP_UTF8, 0, b, -1, out, TEXTMAX))
		out[0] = 0;
}

static DWORD number(const char *s, const char *key, DWORD otherwise)
{
	char b[64];
	return field(s, key, b, sizeof b) && b[0] ? strtoul(b, NULL, 10) : otherwise;
}

static DWORD policy(const char *key)
{
	wchar_t path[MAX_PATH];
	char *s = slurp(place(path, L"policy", NULL));
	DWORD v = number(s, key, 0);
	free(s);
	return v;
}

static DWORD save(const user *u)
{
	static const char *const keys[] = {"name", "password", "comment", "fullname", "sid"};
	const wchar_t *values[] = {u->name, u->password, u->comment, u->fullname, u->sid};
	char *out = calloc(1, 5 * TEXTMAX * 4 + 1024);
	wchar_t path[MAX_PATH];
	BOOL ok;
	int i;
	for (i = 0; i < 5; i++) {
		char b[TEXTMAX * 4];
		if (!WideCharToMultiByte(CP_UTF8, 0, values[i], -1, b, sizeof b, NULL, NULL))
			b[0] = 0;
		sprintf(out + strlen(out), "%s=%s\n", keys[i], b);
	}
	sprintf(out + strlen(out), "flags=%lu\nexpires=%lu\nset=%lu\nbad=%lu\ncounter=%lu\n", u->flags, u->expires, u->set, u->bad, u->counter);
	ok = spill(place(path, L"users", u->file), out);
	free(out);
	return ok ? NERR_Success : NERR_InternalError;
}

static BOOL load(const wchar_t *file, user *u)
{
	wchar_t path[MAX_PATH];
	char *s = slurp(place(path, L"users", file));
	if (!s)
		return FALSE;
	memset(u, 0, sizeof *u);
	wcsncpy(u->file, file, MAX_PATH - 1);
	text(s, "name", u->name);
	text(s, "password", u->password);
	text(s, "comment", u->comment);
	text(s, "fullname", u->fullname);
	text(s, "sid", u->sid);
	u->flags = number(s, "flags", UF_SCRIPT | UF_NORMAL_ACCOUNT);
	u->expires = number(s, "expires", NEVER);
	u->set = number(s, "set", 0);
	u->bad = number(s, "bad", 0);
	u->counter = number(s, "counter", 0);
	free(s);
	return u->name[0] != 0;
}

static void builtin(const wchar_t *name, const wchar_t *rid)
{
	user u;
	memset(&u, 0, sizeof u);
	wcscpy(u.file, name);
	wcscpy(u.name, name);
	wcscpy(u.password, L"not known");
	wcscpy(u.sid, MACHINE);
	wcscat(u.sid, rid);
	u.flags = UF_SCRIPT | UF_NORMAL_ACCOUNT | UF_DONT_EXPIRE_PASSWD;
	u.expires = NEVER;
	save(&u);
}

static void begin(void)
{
	static const wchar_t *const groups[] = {L"Administrators", L"Users", L"Guests", L"Remote Desktop Users"};
	wchar_t path[MAX_PATH];
	int i;
	lock();
	place(path, L".", NULL);
	path[wcslen(path) - 2] = 0;
	CreateDirectoryW(path, NULL);
	CreateDirectoryW(place(path, L"groups", NULL), NULL);
	for (i = 0; i < 4; i++)
		if (GetFileAttributesW(place(path, L"groups", groups[i])) == INVALID_FILE_ATTRIBUTES)
			spill(path, "");
	if (CreateDirectoryW(place(path, L"users", NULL), NULL)) {
		builtin(L"Administrator", L"500");
		builtin(L"Guest", L"501");
	}
}

/* list returns the names of the files in a folder, without what is half written. */
static int list(const wchar_t *folder, wchar_t (*names)[MAX_PATH], int max)
{
	wchar_t path[MAX_PATH];
	WIN32_FIND_DATAW d;
	HANDLE h = FindFirstFileW(place(path, folder, L"*"), &d);
	int n = 0;
	if (h == INVALID_HANDLE_VALUE)
		return 0;
	do {
		size_t len = wcslen(d.cFileName);
		if (d.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY)
			continue;
		if (d.cFileName[0] == L'.' || (len > 4 && wcscmp(d.cFileName + len - 4, L".new") == 0))
			continue;
		if (n < max)
			wcscpy(names[n++], d.cFileName);
	} while (FindNextFileW(h, &d));
	FindClose(h);
	return n;
}

static BOOL find(LPCWSTR name, user *u)
{
	wchar_t(*names)[MAX_PATH] = calloc(USERMAX, sizeof *names);
	int i, n = list(L"users", names, USERMAX);
	BOOL found = FALSE;
	for (i = 0; i < n && !found; i++)
		found = load(names[i], u) && CompareStringOrdinal(u->name, -1, name, -1, TRUE) == CSTR_EQUAL;
	free(names);
	return found;
}

/* acknowledged waits as the top of this file says. The lock is not held. */
static DWORD acknowledged(const user *u)
{
	wchar_t path[MAX_PATH], ack[MAX_PATH];
	int i;
	if (GetFileAttributesW(place(path, L"wait-ack", NULL)) == INVALID_FILE_ATTRIBUTES)
		return NERR_Success;
	_snwprintf(ack, MAX_PATH, L"ack-%ls", u->file);
	for (i = 0; i < 500; i++) {
		char *s = slurp(place(path, ack, NULL));
		BOOL same = s && strtoul(s, NULL, 10) == u->counter;
		free(s);
		if (same)
			return NERR_Success;
		Sleep(20);
	}
	return NERR_InternalError;
}

static BOOL weak(const user *u, LPCWSTR password)
{
	size_t i, n = wcslen(password);
	BOOL upper = FALSE, lower = FALSE, digit = FALSE, other = FALSE;
	wchar_t p[TEXTMAX], name[TEXTMAX];
	if (n < policy("minlength"))
		return TRUE;
	if (!policy("complexity"))
		return FALSE;
	for (i = 0; i < n; i++) {
		wchar_t c = password[i];
		if (c >= 'A' && c <= 'Z')
			upper = TRUE;
		else if (c >= 'a' && c <= 'z')
			lower = TRUE;
		else if (c >= '0' && c <= '9')
			digit = TRUE;
		else
			other = TRUE;
	}
	wcsncpy(p, password, TEXTMAX - 1);
	p[TEXTMAX - 1] = 0;
	_wcslwr(p);
	wcscpy(name, u->name);
	_wcslwr(name);
	return !(upper && lower && digit && other) || (wcslen(name) >= 3 && wcsstr(p, name));
}

static DWORD badName(LPCWSTR name)
{
	size_t n = name ? wcslen(name) : 0;
	if (n == 0 || n > LM20_UNLEN || wcspbrk(name, L"\"/\\[]:;|=,+*?<>@") || wcsspn(name, L". ") == n)
		return NERR_BadUsername;
	return NERR_Success;
}

static DWORD bad(LPDWORD parm, DWORD which)
{
	if (parm)
		*parm = which;
	return ERROR_INVALID_PARAMETER;
}

static void set_password(user *u, LPCWSTR password)
{
	wcsncpy(u->password, password, TEXTMAX - 1);
	u->set = (DWORD)time(NULL);
	u->bad = 0;
	u->counter++;
}

/* Memory for callers. */

EXPORT DWORD WINAPI NetApiBufferAllocate(DWORD size, LPVOID *buf)
{
	*buf = HeapAlloc(GetProcessHeap(), HEAP_ZERO_MEMORY, size ? size : 1);
	return *buf ? NERR_Success : ERROR_NOT_ENOUGH_MEMORY;
}

EXPORT DWORD WINAPI NetApiBufferFree(LPVOID buf)
{
	if (buf) {
		memset(buf, 0xdd, HeapSize(GetProcessHeap(), 0, buf));
		HeapFree(GetProcessHeap(), 0, buf);
	}
	return NERR_Success;
}

typedef struct {
	BYTE *start, *next;
} arena;

static LPWSTR put(arena *a, const wchar_t *s)
{
	LPWSTR at = (LPWSTR)a->next;
	wcscpy(at, s);
	a->next += (wcslen(s) + 1) * sizeof *s;
	a->next += (8 - (a->next - a->start) % 8) % 8;
	return at;
}

static PSID putSID(arena *a, const wchar_t *s)
{
	PSID sid, at = a->next;
	if (!ConvertStringSidToSidW(s, &sid))
		return NULL;
	memcpy(at, sid, GetLengthSid(sid));
	a->next += (GetLengthSid(sid) + 7) / 8 * 8;
	LocalFree(sid);
	return at;
}

static DWORD room(arena *a, size_t head, size_t more)
{
	DWORD e = NetApiBufferAllocate((DWORD)(head + more), (LPVOID *)&a->start);
	a->next = a->start + (head + 7) / 8 * 8;
	return e;
}

/* Users. */

EXPORT NET_API_STATUS WINAPI NetUserAdd(LPCWSTR server, DWORD level, LPBYTE buf, LPDWORD parm)
{
	const USER_INFO_1 *i = (const USER_INFO_1 *)buf;
	wchar_t path[MAX_PATH];
	char *s, next[32];
	DWORD e, rid;
	user u;
	if (server && server[0])
		return ERROR_ACCESS_DENIED;
	if (level != 1)
		return ERROR_INVALID_LEVEL;
	if (!i)
		return ERROR_INVALID_PARAMETER;
	if ((e = badName(i->usri1_name)))
		return e;
	if (i->usri1_priv != USER_PRIV_USER)
		return bad(parm, USER_PRIV_PARMNUM);
	if (!(i->usri1_flags & UF_SCRIPT) || (i->usri1_flags & UF_LOCKOUT))
		return bad(parm, USER_FLAGS_PARMNUM);
	if (i->usri1_comment && wcslen(i->usri1_comment) > MAXCOMMENTSZ)
		return bad(parm, USER_COMMENT_PARMNUM);
	if (i->usri1_password && wcslen(i->usri1_password) > PWLEN)
		return bad(parm, USER_PASSWORD_PARMNUM);
	begin();
	if (find(i->usri1_name, &u))
		return unlock(NERR_UserExists);
	if (GetFileAttributesW(place(path, L"groups", i->usri1_name)) != INVALID_FILE_ATTRIBUTES)
		return unlock(NERR_GroupExists);
	memset(&u, 0, sizeof u);
	wcscpy(u.file, i->usri1_name);
	wcscpy(u.name, i->usri1_name);
	if (weak(&u, i->usri1_password ? i->usri1_password : L""))
		return unlock(NERR_PasswordTooShort);
	if (i->usri1_comment)
		wcscpy(u.comment, i->usri1_comment);
	set_password(&u, i->usri1_password ? i->usri1_password : L"");
	u.flags = i->usri1_flags | UF_NORMAL_ACCOUNT;
	u.expires = NEVER;
	s = slurp(place(path, L"next-rid", NULL));
	rid = s ? strtoul(s, NULL, 10) : 1001;
	free(s);
	sprintf(next, "%lu\n", rid + 1);
	spill(path, next);
	_snwprintf(u.sid, TEXTMAX, MACHINE L"%lu", rid);
	e = unlock(save(&u));
	return e ? e : acknowledged(&u);
}

EXPORT NET_API_STATUS WINAPI NetUserDel(LPCWSTR server, LPCWSTR name)
{
	wchar_t path[MAX_PATH], ack[MAX_PATH];
	wchar_t(*names)[MAX_PATH];
	int i, n;
	user u;
	if (server && server[0])
		return ERROR_ACCESS_DENIED;
	if (!name)
		return ERROR_INVALID_PARAMETER;
	begin();
	if (!find(name, &u))
		return unlock(NERR_UserNotFound);
	if (wcscmp(u.sid, MACHINE L"500") == 0 || wcscmp(u.sid, MACHINE L"501") == 0)
		return unlock(1371 /* ERROR_SPECIAL_ACCOUNT */);
	DeleteFileW(place(path, L"users", u.file));
	_snwprintf(ack, MAX_PATH, L"ack-%ls", u.file);
	DeleteFileW(place(path, ack, NULL));
	names = calloc(USERMAX, sizeof *names);
	n = list(L"groups", names, USERMAX);
	for (i = 0; i < n; i++) { /* a deleted account is in no group */
		char *s = slurp(place(path, L"groups", names[i])), sid[256], *out, *line;
		WideCharToMultiByte(CP_UTF8, 0, u.sid, -1, sid, sizeof sid, NULL, NULL);
		if (s && strstr(s, sid)) {
			out = calloc(1, strlen(s) + 2);
			for (line = strtok(s, "\r\n"); line; line = strtok(NULL, "\r\n"))
				if (strcmp(line, sid))
					strcat(strcat(out, line), "\n");
			spill(path, out);
			free(out);
		}
		free(s);
	}
	free(names);
	return unlock(NERR_Success);
}

EXPORT NET_API_STATUS WINAPI NetUserGetInfo(LPCWSTR server, LPCWSTR name, DWORD level, LPBYTE *buf)
{
	arena a;
	DWORD e;
	user u;
	if (server && server[0])
		return ERROR_ACCESS_DENIED;
	if (!name || !buf)
		return ERROR_INVALID_PARAMETER;
	*buf = NULL;
	if (level != 0 && level != 1 && level != 4 && level != 10 && level != 23)
		return ERROR_INVALID_LEVEL;
	begin();
	if (!find(name, &u))
		return unlock(NERR_UserNotFound);
	unlock(0);
	if ((e = room(&a, sizeof(USER_INFO_4), 4 * TEXTMAX * sizeof(wchar_t))))
		return e;
	*buf = a.start;
	switch (level) {
	case 0:
		((USER_INFO_0 *)a.start)->usri0_name = put(&a, u.name);
		break;
	case 1: {
		USER_INFO_1 *i = (USER_INFO_1 *)a.start;
		i->usri1_name = put(&a, u.name);
		i->usri1_priv = USER_PRIV_USER;
		i->usri1_comment = put(&a, u.comment);
		i->usri1_flags = u.flags;
		break;
	}
	case 4: {
		USER_INFO_4 *i = (USER_INFO_4 *)a.start;
		i->usri4_name = put(&a, u.name);
		i->usri4_password_age = u.set ? (DWORD)time(NULL) - u.set : 0;
		i->usri4_priv = USER_PRIV_USER;
		i->usri4_comment = put(&a, u.comment);
		i->usri4_flags = u.flags;
		i->usri4_full_name = put(&a, u.fullname);
		i->usri4_acct_expires = u.expires;
		i->usri4_max_storage = USER_MAXSTORAGE_UNLIMITED;
		i->usri4_units_per_week = UNITS_PER_WEEK;
		i->usri4_bad_pw_count = u.bad;
		i->usri4_logon_server = put(&a, L"\\\\*");
		i->usri4_user_sid = putSID(&a, u.sid);
		i->usri4_primary_group_id = DOMAIN_GROUP_RID_USERS;
		break;
	}
	case 10: {
		USER_INFO_10 *i = (USER_INFO_10 *)a.start;
		i->usri10_name = put(&a, u.name);
		i->usri10_comment = put(&a, u.comment);
		i->usri10_usr_comment = put(&a, L"");
		i->usri10_full_name = put(&a, u.fullname);
		break;
	}
	case 23: {
		USER_INFO_23 *i = (USER_INFO_23 *)a.start;
		i->usri23_name = put(&a, u.name);
		i->usri23_full_name = put(&a, u.fullname);
		i->usri23_comment = put(&a, u.comment);
		i->usri23_flags = u.flags;
		i->usri23_user_sid = putSID(&a, u.sid);
		break;
	}
	}
	return NERR_Success;
}

EXPORT NET_API_STATUS WINAPI NetUserSetInfo(LPCWSTR server, LPCWSTR name, DWORD level, LPBYTE buf, LPDWORD parm)
{
	BOOL wait = FALSE;
	DWORD e;
	user u;
	if (server && server[0])
		return ERROR_ACCESS_DENIED;
	if (level != 1003 && level != 1007 && level != 1008 && level != 1011 && level != 1017)
		return ERROR_INVALID_LEVEL;
	if (!name || !buf)
		return ERROR_INVALID_PARAMETER;
	begin();
	if (!find(name, &u))
		return unlock(NERR_UserNotFound);
	switch (level) {
	case 1003: {
		LPCWSTR p = ((USER_INFO_1003 *)buf)->usri1003_password;
		if (!p || wcslen(p) > PWLEN)
			return unlock(bad(parm, USER_PASSWORD_PARMNUM));
		if (weak(&u, p))
			return unlock(NERR_PasswordTooShort);
		set_password(&u, p);
		wait = TRUE;
		break;
	}
	case 1007: {
		LPCWSTR s = ((USER_INFO_1007 *)buf)->usri1007_comment;
		if (!s || wcslen(s) > MAXCOMMENTSZ)
			return unlock(bad(parm, USER_COMMENT_PARMNUM));
		wcscpy(u.comment, s);
		break;
	}
	case 1008: {
		DWORD f = ((USER_INFO_1008 *)buf)->usri1008_flags;
		if (!(f & UF_SCRIPT) || (f & UF_LOCKOUT & ~u.flags) || (f & ~(UF_SETTABLE_BITS | UF_LOCKOUT)))
			return unlock(bad(parm, USER_FLAGS_PARMNUM));
		if (!(f & UF_LOCKOUT))
			u.bad = 0;
		u.flags = f | UF_NORMAL_ACCOUNT;
		u.counter++;
		wait = TRUE;
		break;
	}
	case 1011: {
		LPCWSTR s = ((USER_INFO_1011 *)buf)->usri1011_full_name;
		if (!s || wcslen(s) > MAXCOMMENTSZ)
			return unlock(bad(parm, USER_FULL_NAME_PARMNUM));
		wcscpy(u.fullname, s);
		break;
	}
	case 1017:
		u.expires = ((USER_INFO_1017 *)buf)->usri1017_acct_expires;
		break;
	}
	e = unlock(save(&u));
	return e || !wait ? e : acknowledged(&u);
}

EXPORT NET_API_STATUS WINAPI NetUserChangePassword(LPCWSTR server, LPCWSTR name, LPCWSTR old, LPCWSTR next)
{
	WCHAR computer[MAX_COMPUTERNAME_LENGTH + 1];
	DWORD e, limit, n = MAX_COMPUTERNAME_LENGTH + 1;
	user u;
	/* A null pointer means the caller's own domain, which is not this host. */
	if (!server || wcsncmp(server, L"\\\\", 2) != 0 || !GetComputerNameW(computer, &n) || _wcsicmp(server + 2, computer) != 0)
		return NERR_InvalidComputer;
	if (!name || !old || !next || wcslen(next) > PWLEN)
		return ERROR_INVALID_PARAMETER;
	begin();
	if (!find(name, &u))
		return unlock(NERR_UserNotFound);
	if (u.flags & UF_LOCKOUT)
		return unlock(ERROR_ACCOUNT_LOCKED_OUT);
	if ((u.flags & UF_ACCOUNTDISABLE) && policy("refuse-disabled"))
		return unlock(ERROR_ACCOUNT_DISABLED);
	if (wcscmp(u.password, old) != 0) {
		limit = policy("lockout");
		u.bad++;
		if (limit && u.bad >= limit)
			u.flags |= UF_LOCKOUT;
		save(&u);
		return unlock(ERROR_INVALID_PASSWORD);
	}
	if (policy("refuse-change") || weak(&u, next) || (u.set && (DWORD)time(NULL) - u.set < policy("minage")))
		return unlock(NERR_PasswordTooShort);
	set_password(&u, next);
	e = unlock(save(&u));
	return e ? e : acknowledged(&u);
}

/* window tells which of n entries an enumeration returns now. */
static DWORD window(int n, DWORD from, int *to, LPDWORD read, LPDWORD total)
{
	DWORD page = policy("page");
	*to = n;
	if (page && from + page < (DWORD)n)
		*to = (int)(from + page);
	*read = from < (DWORD)*to ? (DWORD)*to - from : 0;
	*total = (DWORD)n - from;
	return *to < n ? ERROR_MORE_DATA : NERR_Success;
}

EXPORT NET_API_STATUS WINAPI NetUserEnum(LPCWSTR server, DWORD level, DWORD filter, LPBYTE *buf, DWORD max, LPDWORD read, LPDWORD total, LPDWORD resume)
{
	wchar_t(*names)[MAX_PATH];
	DWORD from = resume ? *resume : 0, e, status;
	int i, n, to;
	arena a;
	if (server && server[0])
		return ERROR_ACCESS_DENIED;
	if (level != 0)
		return ERROR_INVALID_LEVEL;
	if (!buf || !read || !total || max != MAX_PREFERRED_LENGTH || (filter != 0 && filter != FILTER_NORMAL_ACCOUNT))
		return ERROR_INVALID_PARAMETER;
	*buf = NULL;
	begin();
	names = calloc(USERMAX, sizeof *names);
	n = list(L"users", names, USERMAX);
	status = window(n, from, &to, read, total);
	e = room(&a, (*read + 1) * sizeof(USER_INFO_0), (*read + 1) * TEXTMAX * sizeof(wchar_t));
	for (i = from; !e && i < to; i++) {
		user u;
		if (!load(names[i], &u))
			wcscpy(u.name, names[i]);
		((USER_INFO_0 *)a.start)[i - from].usri0_name = put(&a, u.name);
	}
	free(names);
	unlock(0);
	if (e)
		return e;
	*buf = a.start;
	if (resume)
		*resume = status == ERROR_MORE_DATA ? (DWORD)to : 0;
	return status;
}

EXPORT NET_API_STATUS WINAPI NetUserModalsGet(LPCWSTR server, DWORD level, LPBYTE *buf)
{
	USER_MODALS_INFO_0 *i;
	DWORD e;
	if (server && server[0])
		return ERROR_ACCESS_DENIED;
	if (level != 0)
		return ERROR_INVALID_LEVEL;
	if ((e = NetApiBufferAllocate(sizeof *i, (LPVOID *)buf)))
		return e;
	begin();
	i = (USER_MODALS_INFO_0 *)*buf;
	i->usrmod0_min_passwd_len = policy("minlength");
	i->usrmod0_max_passwd_age = TIMEQ_FOREVER;
	i->usrmod0_min_passwd_age = policy("minage");
	i->usrmod0_force_logoff = TIMEQ_FOREVER;
	return unlock(NERR_Success);
}

/* Local groups. */

EXPORT NET_API_STATUS WINAPI NetLocalGroupAdd(LPCWSTR server, DWORD level, LPBYTE buf, LPDWORD parm)
{
	const LOCALGROUP_INFO_1 *i = (const LOCALGROUP_INFO_1 *)buf;
	wchar_t path[MAX_PATH];
	user u;
	(void)parm;
	if (server && server[0])
		return ERROR_ACCESS_DENIED;
	if (level != 1)
		return ERROR_INVALID_LEVEL;
	if (!i || !i->lgrpi1_name || !i->lgrpi1_name[0] || !i->lgrpi1_comment || wcslen(i->lgrpi1_comment) > MAXCOMMENTSZ)
		return ERROR_INVALID_PARAMETER;
	begin();
	if (find(i->lgrpi1_name, &u))
		return unlock(NERR_UserExists);
	if (GetFileAttributesW(place(path, L"groups", i->lgrpi1_name)) != INVALID_FILE_ATTRIBUTES)
		return unlock(ERROR_ALIAS_EXISTS);
	return unlock(spill(path, "") ? NERR_Success : NERR_InternalError);
}

static int lines(char *s, char **all, int max)
{
	int n = 0;
	char *line;
	for (line = strtok(s, "\r\n"); line && n < max; line = strtok(NULL, "\r\n"))
		all[n++] = line;
	return n;
}

EXPORT NET_API_STATUS WINAPI NetLocalGroupGetMembers(LPCWSTR server, LPCWSTR group, DWORD level, LPBYTE *buf, DWORD max, LPDWORD read, LPDWORD total, PDWORD_PTR resume)
{
	wchar_t path[MAX_PATH];
	char *s, *all[USERMAX];
	DWORD from = resume ? (DWORD)*resume : 0, e, status;
	int i, n, to;
	arena a;
	if (server && server[0])
		return ERROR_ACCESS_DENIED;
	if (level != 0)
		return ERROR_INVALID_LEVEL;
	if (!group || !buf || !read || !total || max != MAX_PREFERRED_LENGTH)
		return ERROR_INVALID_PARAMETER;
	*buf = NULL;
	begin();
	s = slurp(place(path, L"groups", group));
	if (!s)
		return unlock(NERR_GroupNotFound);
	n = lines(s, all, USERMAX);
	status = window(n, from, &to, read, total);
	e = room(&a, (*read + 1) * sizeof(LOCALGROUP_MEMBERS_INFO_0), (*read + 1) * SECURITY_MAX_SID_SIZE);
	for (i = from; !e && i < to; i++) {
		wchar_t sid[TEXTMAX];
		MultiByteToWideChar(CP_UTF8, 0, all[i], -1, sid, TEXTMAX);
		((LOCALGROUP_MEMBERS_INFO_0 *)a.start)[i - from].lgrmi0_sid = putSID(&a, sid);
	}
	free(s);
	unlock(0);
	if (e)
		return e;
	*buf = a.start;
	if (resume)
		*resume = status == ERROR_MORE_DATA ? (DWORD_PTR)to : 0;
	return status;
}

static NET_API_STATUS member(LPCWSTR server, LPCWSTR group, DWORD level, LPBYTE buf, DWORD count, BOOL add)
{
	const LOCALGROUP_MEMBERS_INFO_0 *m = (const LOCALGROUP_MEMBERS_INFO_0 *)buf;
	wchar_t path[MAX_PATH];
	LPSTR sid;
	char *s, *out, *all[USERMAX];
	BOOL there = FALSE, ok;
	int i, n;
	if (server && server[0])
		return ERROR_ACCESS_DENIED;
	if (level != 0)
		return ERROR_INVALID_LEVEL;
	if (!group || !m || count != 1 || !m->lgrmi0_sid || !IsValidSid(m->lgrmi0_sid) || !ConvertSidToStringSidA(m->lgrmi0_sid, &sid))
		return ERROR_INVALID_PARAMETER;
	begin();
	s = slurp(place(path, L"groups", group));
	if (!s)
		return unlock(NERR_GroupNotFound);
	out = calloc(1, strlen(s) + strlen(sid) + 4);
	n = lines(s, all, USERMAX);
	for (i = 0; i < n; i++) {
		if (strcmp(all[i], sid) == 0)
			there = TRUE;
		else
			strcat(strcat(out, all[i]), "\n");
	}
	if (add)
		strcat(strcat(out, sid), "\n");
	ok = there != add && spill(path, out);
	free(out);
	free(s);
	LocalFree(sid);
	if (there == add)
		return unlock(add ? ERROR_MEMBER_IN_ALIAS : ERROR_MEMBER_NOT_IN_ALIAS);
	return unlock(ok ? NERR_Success : NERR_InternalError);
}

EXPORT NET_API_STATUS WINAPI NetLocalGroupAddMembers(LPCWSTR server, LPCWSTR group, DWORD level, LPBYTE buf, DWORD count)
{
	return member(server, group, level, buf, count, TRUE);
}

EXPORT NET_API_STATUS WINAPI NetLocalGroupDelMembers(LPCWSTR server, LPCWSTR group, DWORD level, LPBYTE buf, DWORD count)
{
	return member(server, group, level, buf, count, FALSE);
}

/* The host. */

EXPORT DWORD WINAPI DsRoleGetPrimaryDomainInformation(LPCWSTR server, DSROLE_PRIMARY_DOMAIN_INFO_LEVEL level, PBYTE *buf)
{
	DSROLE_PRIMARY_DOMAIN_INFO_BASIC *i;
	if (server || level != DsRolePrimaryDomainInfoBasic || !buf)
		return ERROR_INVALID_PARAMETER;
	i = HeapAlloc(GetProcessHeap(), HEAP_ZERO_MEMORY, sizeof *i);
	begin();
	i->MachineRole = policy("controller") ? DsRole_RolePrimaryDomainController : DsRole_RoleStandaloneServer;
	unlock(0);
	*buf = (PBYTE)i;
	return ERROR_SUCCESS;
}

EXPORT VOID WINAPI DsRoleFreeMemory(PVOID buf)
{
	NetApiBufferFree(buf);
}

/* For os/user of Go, which asks whether the host is in a domain. */
EXPORT NET_API_STATUS WINAPI NetGetJoinInformation(LPCWSTR server, LPWSTR *name, PNETSETUP_JOIN_STATUS status)
{
	DWORD e;
	(void)server;
	if ((e = NetApiBufferAllocate(32, (LPVOID *)name)))
		return e;
	wcscpy(*name, L"WORKGROUP");
	*status = NetSetupWorkgroupName;
	return NERR_Success;
}
