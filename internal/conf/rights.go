package conf

import (
	"slices"

	"sft"
)

// What a folder of a Windows service is made with: the system and the
// administrators have all rights, in it and in what is made in it, and nobody
// else has any; nothing is inherited from above. The label, where the system
// takes it, keeps every process below High integrity out, of whatever account.
// Security Descriptor Definition Language: Microsoft, "ACE Strings".
const (
	serviceDirACL   = "D:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
	serviceDirLabel = "S:(ML;OICI;NRNWNX;;;HI)"
)

// Well-known SIDs: Microsoft, "Well-known SIDs".
const (
	sidSystem           = "S-1-5-18"
	sidAdministrators   = "S-1-5-32-544"
	sidCreatorOwner     = "S-1-3-0"
	sidOwnerRights      = "S-1-3-4"
	sidTrustedInstaller = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
)

// The rights of a file or folder by which its content does not change:
// FILE_READ_DATA, FILE_READ_EA, FILE_EXECUTE, FILE_READ_ATTRIBUTES,
// READ_CONTROL and SYNCHRONIZE, and the generic names of them.
const readRights = 0x1 | 0x8 | 0x20 | 0x80 | 0x20000 | 0x100000 | 0x80000000 | 0x20000000

// A right is one entry of a list of rights that lets somebody in.
type right struct {
	sid  string // "" for an entry of a kind that is not known
	mask uint32
	heir bool // it is only passed on: INHERIT_ONLY_ACE
}

// rights are a file's owner and list of rights, as far as they matter here.
type rights struct {
	owner string
	all   bool    // there is no list, and that lets everybody in
	allow []right // what keeps somebody out is left out
}

// A verdict says how far something may be used.
type verdict int

const (
	asMade   verdict = iota // nobody but the trusted has any right
	readable                // others can read it, and could not change it
	planted                 // others own it, or can change it
)

// judge tells what r means for a program that trusts these SIDs, the system
// and the administrators.
func (r rights) judge(trusted ...string) verdict {
	trusted = append(slices.Clone(trusted), sidSystem, sidAdministrators)
	if r.owner == sidTrustedInstaller { // Windows itself
		trusted = append(trusted, sidTrustedInstaller)
	}
	if r.all || !slices.Contains(trusted, r.owner) {
		return planted
	}
	worst := asMade
	for _, a := range r.allow {
		switch {
		case slices.Contains(trusted, a.sid), a.sid == sidOwnerRights, a.sid == sidTrustedInstaller:
		case a.sid == sidCreatorOwner && a.heir: // whoever can make something here is trusted
		case a.sid != "" && a.mask&^readRights == 0:
			worst = max(worst, readable)
		default:
			return planted
		}
	}
	return worst
}

// errPlanted refuses a folder that somebody else has made, or could fill.
func errPlanted(path, what string) error {
	return &sft.Error{Code: sft.Denied, Msg: path + " " + what,
		Hint: "find out who made it, look at what is in it, then remove it: sftd makes it as it has to be"}
}
