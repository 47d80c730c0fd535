#!/usr/bin/env bash
# Makes the private Debian 13 tree that scripts/wine runs Windows programs in:
# Wine 10, which Debian 12 does not have and which current Go programs need, and
# the tools that make MSI packages. Nothing of it is on the machine's own PATH.
#
# The tree is about 2 GB in $SFT_WINE (/var/cache/sft-wine), is made in about a
# minute, whole or not at all, and is kept. It has:
#
#   tree     the Debian
#   prefix   what Wine takes for drive C: and the registry, as new; never changed
#   recipe   the number below
set -eu

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

recipe=1 # another number makes a new tree
suite=trixie
packages=wine,wine64,wixl,msitools,faketime,ca-certificates
home=${SFT_WINE:-/var/cache/sft-wine}

ready() { [ "$(cat "$home/recipe" 2>/dev/null)" = "$recipe" ]; }
if ready; then exit 0; fi

[ "$(id -u)" = 0 ] || die "the Windows tests need root for their set-up: run make setup with sudo"
[ "$(dpkg --print-architecture)" = amd64 ] || die "Wine runs amd64 programs on amd64 alone: the Windows tests need such a machine"
mkdir -p "$(dirname "$home")"
exec 9>"$home.lock" # two runs would make it twice
flock 9
if ready; then exit 0; fi

# The packages come from where this machine gets its own, if that has Debian.
mirror=${SFT_DEBIAN_MIRROR:-}
sources() { apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(LABEL) $(REPO_URI)' | sed -n 's/^Packages Debian Debian //p' | head -n 1; }
[ -n "$mirror" ] || mirror=$(sources)
[ -n "$mirror" ] || { apt-get update -qq && mirror=$(sources); }
[ -n "$mirror" ] || die "this machine has no Debian mirror among its apt sources: name one in SFT_DEBIAN_MIRROR"

new=$home.new
drop() { rm -rf --one-file-system "$new"; }
trap drop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say "making a Debian 13 with Wine in $home"
try=1
until drop && mkdir -p "$new" && mmdebstrap --quiet --variant=minbase --include="$packages" \
	--aptopt='Acquire::Retries "3"' --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$new/tree" "$mirror" >&2; do
	[ $try -lt 4 ] || die "the Debian tree could not be made; see what mmdebstrap says above, then run make setup again"
	say "mmdebstrap did not finish; trying again in $((try * 5)) s"
	sleep $((try * 5))
	try=$((try + 1))
done

# A new prefix takes Wine a quarter of a minute, so it is made here, once.
mkdir -p "$new/prefix" "$new/tree/prefix"
env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 WINEPREFIX=/prefix WINEDEBUG=-all WINEDLLOVERRIDES="mscoree=d;mshtml=d" \
	bwrap --unshare-pid --die-with-parent --bind "$new/tree" / --dev-bind /dev /dev --proc /proc --tmpfs /tmp --bind "$new/prefix" /prefix \
	sh -c 'wineboot -i; wineserver -w' </dev/null >/dev/null 2>&1 || die "Wine could not be started in the new tree"
[ -s "$new/prefix/system.reg" ] || die "Wine made no registry in the new tree"
echo "$recipe" >"$new/recipe"

# A tree of an older recipe goes when the new one is whole.
if [ -e "$home" ]; then mv "$home" "$home.old"; fi
mv "$new" "$home"
rm -rf --one-file-system "$home.old"
