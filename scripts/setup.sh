#!/bin/sh
# Installs what the other commands of the Makefile need: RDP servers and
# clients, a browser, PostgreSQL's programs, tools for hosts in namespaces and
# for packages, and a private Debian with Wine (wine-setup.sh).
#
# It only installs packages. Nothing that it brings is started, now or at the
# next boot, nothing is removed, no database is made, and a machine that has everything is left
# alone: that takes well under a second.
set -eu

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

supported="Debian 12, Ubuntu 22.04 and Ubuntu 24.04"
system() { # prints what this machine runs, as ID VERSION_ID
	[ -r /etc/os-release ] || { echo unknown; return; }
	(. /etc/os-release; echo "${ID:-unknown} ${VERSION_ID:-}")
}

packages="
	gcc libc6-dev ca-certificates openssl jq procps util-linux iproute2 sudo tcpdump
	xrdp xorgxrdp freerdp2-x11 freerdp2-shadow-x11 winpr-utils
	rdesktop remmina remmina-plugin-rdp stunnel4
	xvfb openbox xterm imagemagick x11-utils x11-apps x11-xserver-utils xdotool xclip fuse3 fonts-dejavu-core
	openssh-server openssh-client netcat-openbsd rsync ansible-core systemd dbus postgresql libnss3-tools rsyslog rsyslog-gnutls
	mmdebstrap bubblewrap debian-archive-keyring gcc-mingw-w64-x86-64-win32 osslsigncode rpm zip
"
# What would run on this machine if nobody took care, by package.
services="xrdp:xrdp.service xrdp:xrdp-sesman.service openssh-server:ssh.service openssh-server:ssh.socket postgresql:postgresql.service stunnel4:stunnel4.service rsyslog:rsyslog.service"

os=$(system)
case $os in
"debian 12") packages="$packages chromium" ;;
"ubuntu 22.04" | "ubuntu 24.04") # Chromium is a snap there, which hosts in namespaces cannot run
	command -v google-chrome >/dev/null || say "Ubuntu has no chromium package: tests in a browser are skipped; install google-chrome-stable to run them" ;;
*) die "this is \"$os\", and packages have other names everywhere; use $supported" ;;
esac

# dpkg knows a package that was removed; only "install ok installed" counts.
missing=$(dpkg-query -W -f '${Package} ${Status}\n' $packages 2>/dev/null |
	awk -v want="$packages" '
		/ install ok installed$/ { have[$1] = 1 }
		END { n = split(want, w); for (i = 1; i <= n; i++) if (!(w[i] in have)) printf "%s ", w[i] }')

# What runs and packs for Windows comes last, when its tools are there.
windows() {
	if [ "$(dpkg --print-architecture)" != amd64 ]; then
		say "Wine runs on amd64 alone: tests of the Windows programs are skipped here"
	elif [ "${os%% *}" = ubuntu ] && [ -z "${SFT_DEBIAN_MIRROR:-}" ]; then
		say "Wine comes from Debian 13: tests of the Windows programs are skipped; name a Debian mirror in SFT_DEBIAN_MIRROR to run them"
	else
		"$(dirname "$0")/wine-setup.sh"
	fi
}
[ -n "$missing" ] || { windows; exit 0; }

[ "$(id -u)" = 0 ] || die "make setup needs root to install packages: run it with sudo (missing: ${missing% })"

# One at a time: two runs would restore each other's policy.
exec 9>/run/lock/sft-setup.lock
flock 9

policy=/usr/sbin/policy-rc.d                             # says whether a package may start its service
saved=$policy.before-sft-setup                           # what was there
nocluster=/etc/postgresql-common/createcluster.d/00-sft-setup.conf
restore() {
	rm -f "$policy" "$nocluster"
	if [ -e "$saved" ] || [ -L "$saved" ]; then mv "$saved" "$policy"; fi
	rmdir -p --ignore-fail-on-non-empty "${nocluster%/*}" 2>/dev/null || :
	rm -f /run/lock/sft-setup.lock
}
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# A saved file that is there already is from a run that was killed: it is the right one.
if { [ -e "$policy" ] || [ -L "$policy" ]; } && [ ! -e "$saved" ]; then mv "$policy" "$saved"; fi
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"
mkdir -p "${nocluster%/*}"
echo "create_main_cluster = false" >"$nocluster"

say "installing ${missing% }"
export DEBIAN_FRONTEND=noninteractive
try=1
until apt-get update -qq && apt-get install -y -qq --no-install-recommends --no-remove -o DPkg::Lock::Timeout=120 $missing >&2; do
	[ $try -lt 4 ] || die "packages could not be installed; see what apt-get says above, then run make setup again (nothing is removed for them: rsyslog needs the place of another system-log-daemon)"
	say "apt-get failed; trying again in $((try * 5)) s"
	sleep $((try * 5))
	try=$((try + 1))
done

# What came with these packages stays off at the next boot, too. What was
# there before is the owner's affair.
for s in $services; do
	case " $missing" in
	*" ${s%%:*} "*) systemctl disable -q "${s#*:}" 2>/dev/null || : ;;
	esac
done
windows
