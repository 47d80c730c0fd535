#!/usr/bin/env bash
# Signs a program or an MSI package for Windows, in place: scripts/sign.sh FILE
# TITLE. SIGN_CERT and SIGN_KEY are files (PEM); SIGN_PASS is a file with the
# key's password, SIGN_TS the URL of a time stamp service. Without SIGN_CERT and
# SIGN_KEY nothing is done.
set -eu
die() { echo "sign: $*" >&2; exit 1; }
if [ -z "${SIGN_CERT:-}${SIGN_KEY:-}" ]; then exit 0; fi
if [ ! -r "${SIGN_CERT:-}" ] || [ ! -r "${SIGN_KEY:-}" ]; then die "SIGN_CERT and SIGN_KEY have to be two files that can be read"; fi
said=$(osslsigncode sign -h sha256 -certs "$SIGN_CERT" -key "$SIGN_KEY" ${SIGN_PASS:+-readpass "$SIGN_PASS"} ${SIGN_TS:+-ts "$SIGN_TS"} \
	-n "$2" -in "$1" -out "$1.signed" 2>&1) || { rm -f "$1.signed"; die "$1: $said"; }
mv "$1.signed" "$1"
