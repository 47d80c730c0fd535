// Package policy decides who may do what. It is pure: the facts come in, a
// decision comes out, and nothing is read or written on the way. Package
// platform reads the facts in the transaction that does the deed.
//
// Whatever is not allowed by a line of this package is refused.
package policy

import (
	"slices"

	"sft"
)

// An Action is what somebody wants to do in a team, apart from reaching a
// server.
type Action string

// The actions.
const (
	Read       Action = "read"        // see the team's objects, secrets aside
	ReadAudit  Action = "read_audit"  // see what happened
	ReadTokens Action = "read_tokens" // see that enrollment tokens exist
	Administer Action = "administer"  // change the team's objects
	OwnClient  Action = "own_client"  // see oneself, see and remove a client of one's own
)

// allowed says which roles may do what.
var allowed = map[Action][]sft.Role{
	Read:       {sft.AccessAdmin, sft.AccessUser, sft.ReportingUser},
	ReadAudit:  {sft.AccessAdmin, sft.AccessUser, sft.ReportingUser},
	ReadTokens: {sft.AccessAdmin, sft.ReportingUser},
	Administer: {sft.AccessAdmin},
}

// May reports whether somebody of that status, with those roles, may do the
// action. Who is not active may do nothing.
func May(status sft.Status, roles []sft.Role, action Action) bool {
	if status != sft.StatusActive {
		return false
	}
	if action == OwnClient {
		return true
	}
	return slices.ContainsFunc(allowed[action], func(r sft.Role) bool { return slices.Contains(roles, r) })
}

// A Decision is whether somebody may reach a project's servers, and as what.
type Decision struct {
	Access bool
	Admin  bool
	By     string // the group that gives the access
}

// Reach decides on the servers of one project. grants are the places in that
// project of the groups that the user is in, and of no others. Who is not
// active reaches none. People do by their groups, and so do service users, but
// only those that are bound to an account of a host: the others have no client
// to come with, and no account is made for them.
func Reach(status sft.Status, kind sft.UserType, bound bool, grants []sft.ProjectGroup) Decision {
	var d Decision
	if status != sft.StatusActive || kind != sft.Human && !(kind == sft.Service && bound) {
		return d
	}
	for _, g := range grants {
		if !g.ServerAccess {
			continue // admin rights without access are no access
		}
		if !d.Access || g.ServerAdmin && !d.Admin || g.ServerAdmin == d.Admin && g.Group < d.By {
			d.By = g.Group
		}
		d.Access = true
		d.Admin = d.Admin || g.ServerAdmin
	}
	return d
}

// Sudo returns the names of what somebody may run by sudo, in order, on
// servers that they reach by the decision. Who is an administrator there needs
// none, and a group that gives no access gives no rights on the host either.
func Sudo(d Decision, grants []sft.ProjectGroup) []string {
	if !d.Access || d.Admin {
		return nil
	}
	var names []string
	for _, g := range grants {
		if g.ServerAccess {
			names = append(names, g.SudoEntitlements...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Roles returns the roles that count for a request. A client that a server's
// agent asked for has none: it reaches servers, and whoever holds the host does
// not hold the team by it.
func Roles(kind sft.UserType, byClient bool, roles []sft.Role) []sft.Role {
	if kind != sft.Human && byClient {
		return nil
	}
	return roles
}
