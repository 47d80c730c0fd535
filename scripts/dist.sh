#!/usr/bin/env bash
# Makes the packages of a release in build/dist: scripts/dist.sh VERSION, as
# "make dist VERSION=x.y.z" does.
#
#   OUT                   another folder than build/dist
#   ARCHES                amd64 arm64, if not set: of Linux and macOS. Windows is amd64
#   SIGN_CERT, SIGN_KEY   files (PEM): programs and packages for Windows are
#                         signed by these. Not set: they are not signed
#   SIGN_PASS, SIGN_TS    the file with the key's password, the URL of a time stamp service
#   SOURCE_DATE_EPOCH     the time that is in the packages: the last commit's, if not set
#
# Everything is made aside and moved there when it is whole. The same
# source, version and Go give the same bytes, unless something is signed.
set -euo pipefail
cd "$(dirname "$0")/.."
die() { echo "dist: $*" >&2; exit 1; }

version=${1:-}
# Windows Installer compares three numbers, of at most 255, 255 and 65535.
[[ $version =~ ^([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,5})$ ]] && ((10#${BASH_REMATCH[1]} < 256 && 10#${BASH_REMATCH[2]} < 256 && 10#${BASH_REMATCH[3]} < 65536)) ||
	die "\"$version\" is no version of a release: give one like 1.2.3, as in make dist VERSION=1.2.3"
arches=${ARCHES:-amd64 arm64}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} TZ=UTC LC_ALL=C
umask 022

dest=${OUT:-build/dist}
# It is replaced as a whole: nothing but an earlier release may be in it.
[ ! -e "$dest" ] || [ -f "$dest/SHA256SUMS" ] || [ -z "$(ls -A "$dest")" ] || die "$dest holds something else than a release: give another folder, or empty it"
work=$dest.new
rm -rf "$work"
trap 'rm -rf "$work"' EXIT
out=$work/out
mkdir -p "$out"

build() { # OS ARCH PROGRAM...: to $work/OS-ARCH
	local os=$1 arch=$2
	shift 2
	mkdir -p "$work/$os-$arch"
	CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build -trimpath -buildvcs=false -ldflags "-s -w -X sft.Version=$version" -o "$work/$os-$arch/" "${@/#/./cmd/}"
}
folder() { # NAME FILE...: a folder to be archived, with these files and the licence
	local dir=$work/archives/$1
	shift
	mkdir -p "$dir"
	cp "$@" LICENSE "$dir/"
	find "$work/archives" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}
tarball() { # NAME FILE...
	folder "$@"
	tar -C "$work/archives" --format=gnu --sort=name --owner=0 --group=0 --numeric-owner --mode=go-w -c "$1" | gzip -9n >"$out/$1.tar.gz"
}
zipball() { # NAME FILE...
	folder "$@"
	(cd "$work/archives" && find "$1" | sort | zip -q -X -9 -@ "../out/$1.zip")
}

# What this machine needs itself: nfpm, and sft's completions.
mkdir -p build/tools
(cd tools && go build -trimpath -o ../build/tools/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm)

for arch in $arches; do
	build linux "$arch" sft sftd sft-platform
	build darwin "$arch" sft
done
build windows amd64 sft sftd
scripts/sign.sh "$work/windows-amd64/sft.exe" "ScaleFT Client Tools"
scripts/sign.sh "$work/windows-amd64/sftd.exe" "ScaleFT Server Tools"

host=$work/linux-$(go env GOARCH)/sft
if [ ! -e "$host" ]; then host=$work/host-sft && go build -o "$host" ./cmd/sft; fi
for shell in bash zsh fish; do "$host" completion $shell >"$work/completion.$shell"; done
sed "s/@VERSION@/$version/g" packaging/windows/userdata.ps1 | sed 's/$/\r/' >"$work/userdata.ps1"

for arch in $arches; do
	files=$work/linux-$arch
	cp "$work"/completion.* "$files/"
	for unit in sftd sftd-lock sft-platform; do sed 's|@PREFIX@|/usr|g' packaging/$unit.service >"$files/$unit.service"; done
	for package in server client platform; do
		sed -e "s|@VERSION@|$version|g; s|@ARCH@|$arch|g; s|@FILES@|$files|g" packaging/linux/$package.yaml >"$work/$package.yaml"
		for kind in deb rpm; do build/tools/nfpm package -p $kind -f "$work/$package.yaml" -t "$out/" >/dev/null; done
	done
	tarball "scaleft-server-tools-$version-linux-$arch" "$files/sftd" "$files"/sftd*.service packaging/sftd.sysusers packaging/sftd.tmpfiles
	tarball "sft-platform-$version-linux-$arch" "$files/sft-platform" "$files/sft-platform.service" packaging/sft-platform.sysusers packaging/sft-platform.tmpfiles
	tarball "scaleft-client-tools-$version-linux-$arch" "$files/sft" "$work"/completion.*
	tarball "scaleft-client-tools-$version-darwin-$arch" "$work/darwin-$arch/sft" "$work"/completion.*
done
zipball "scaleft-server-tools-$version-windows-amd64" "$work/windows-amd64/sftd.exe" "$work/userdata.ps1"
zipball "scaleft-client-tools-$version-windows-amd64" "$work/windows-amd64/sft.exe"
scripts/msi.sh packaging/windows/server.wxs "$out/ScaleFT-Server-Tools-$version.msi" "$version" "$work/windows-amd64"
scripts/msi.sh packaging/windows/client.wxs "$out/ScaleFT-Client-Tools-$version.msi" "$version" "$work/windows-amd64"
scripts/sign.sh "$out/ScaleFT-Server-Tools-$version.msi" "ScaleFT Server Tools"
scripts/sign.sh "$out/ScaleFT-Client-Tools-$version.msi" "ScaleFT Client Tools"
cp "$work/userdata.ps1" "$out/userdata.ps1"

programs=()
for dir in "$work"/linux-* "$work"/darwin-* "$work"/windows-*; do
	for name in sft sftd sft-platform sft.exe sftd.exe; do if [ -e "$dir/$name" ]; then programs+=("$dir/$name"); fi; done
done
go run ./scripts/sbom -version "$version" "${programs[@]}" >"$out/sft-$version.cdx.json"

(cd "$out" && sha256sum -- * >../SHA256SUMS && mv ../SHA256SUMS .)
rm -rf "$dest"
mv "$out" "$dest"
echo "dist: $(wc -l <"$dest/SHA256SUMS") files in $dest" >&2
