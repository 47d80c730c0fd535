#!/usr/bin/env bash
# Makes an MSI package: scripts/msi.sh WXS OUT VERSION FOLDER, where FOLDER has
# the programs that WXS names. wixl, which does it, is of the tree that
# wine-setup.sh makes. The same programs, WXS and version give the same bytes,
# with SOURCE_DATE_EPOCH for the time of its making.
set -eu
wxs=$(readlink -f "$1") out=$2 version=$3 files=$(readlink -f "$4")
home=${SFT_WINE:-/var/cache/sft-wine}
die() { echo "msi: $*" >&2; exit 1; }
[ -e "$home/recipe" ] || die "there is no wixl in $home: run scripts/wine-setup.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/files"
sed -n 's|.*Source="$(var.Files)/\([^"]*\)".*|\1|p' "$wxs" | while read -r name; do cp "$files/$name" "$work/files/"; done
cp "$wxs" "$work/package.wxs"
time=@${SOURCE_DATE_EPOCH:-$(date +%s)}
touch -d "$time" "$work/files/"* # the cabinet has the times of its files

# One id a version, and one a package (which wixl would choose itself): made from what is in it, not at random.
guid() { sha256sum | tr a-f A-F | sed -E 's/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/\1-\2-5\3-A\4-\5/'; }
product=$(echo "$(basename "$wxs") $version" | guid)
package=$({ echo "$version"; cat "$wxs" "$work/files/"*; } | guid)

tool() {
	bwrap --unshare-all --die-with-parent --ro-bind "$home/tree" / --dev /dev --proc /proc --tmpfs /tmp --bind "$work" /tmp/work --chdir /tmp/work \
		--setenv TZ UTC faketime -f "$(date -u -d "$time" '+%F %T')" "$@"
}

# wixl leaves out what it does not know, says so, and exits 0: any word is an error.
tool wixl -a x64 -D ProductCode="$product" -D Version="$version" -D Files=files -o package.msi package.wxs 2>"$work/said" ||
	die "wixl: $(cat "$work/said")"
[ ! -s "$work/said" ] || die "wixl: $(cat "$work/said")"

# The registry after the services (5800) and before they start (5900): what is
# written for a service has to outlive its making.
tool msibuild package.msi -q "UPDATE InstallExecuteSequence SET Sequence = 5850 WHERE Action = 'WriteRegistryValues'" >/dev/null
# The version before is removed within the transaction: if the new one cannot be
# installed, the old one comes back.
tool msibuild package.msi -q "UPDATE InstallExecuteSequence SET Sequence = 1501 WHERE Action = 'RemoveExistingProducts'" >/dev/null
title=$(tool msiinfo suminfo package.msi | sed -n 's/^Subject: //p')
tool msibuild package.msi -s "$title" ScaleFT "x64;1033" "{$package}" >/dev/null

# wixl names rows of this table at random. The name is only a name, and is once
# in the file, among its strings.
row=$(tool msiinfo export package.msi Environment 2>/dev/null | sed -nE '4,$s/^([0-9a-f-]{36})\t.*/\1/p')
[ -z "$row" ] || LC_ALL=C sed -i "s/$row/$(echo environment | guid | tr A-F a-f)/" "$work/package.msi"
cp "$work/package.msi" "$out"
