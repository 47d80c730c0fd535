package accounts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"sft"
)

// entitlementsFile is the rule file of sudo entitlements.
const entitlementsFile = sudoersDir + "/sft-entitlements"

// ReadRights implements Granter.
func (l *Linux) ReadRights(context.Context) ([]LocalGroup, string, error) {
	e, err := readAll()
	if err != nil {
		return nil, "", err
	}
	var all []LocalGroup
	for _, g := range e.group {
		all = append(all, LocalGroup{Group{g.name, g.gid}, g.members})
	}
	sudo, err := readEtc(entitlementsFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return all, "", nil
	case err != nil:
		return nil, "", err
	case !sudoersRight(entitlementsFile, string(sudo)):
		return all, "# not as sudo demands it\n" + string(sudo), nil // it differs from any that is wanted
	}
	return all, string(sudo), nil
}

// MakeGroup implements Granter.
func (l *Linux) MakeGroup(ctx context.Context, g Group) error {
	e, err := readAll()
	if err != nil || e.findGroup(g.Name).name != "" {
		return err
	}
	if err := l.tool(ctx, "groupadd", "-g", strconv.Itoa(g.GID), "--", g.Name); err != nil {
		return fmt.Errorf("make group %s: %w", g.Name, taken(err))
	}
	return nil
}

// DeleteGroup implements Granter.
func (l *Linux) DeleteGroup(ctx context.Context, g Group) error {
	e, err := readAll()
	if err != nil {
		return err
	}
	if now := e.findGroup(g.Name); now.name == "" || now.gid != g.GID {
		return nil
	}
	if e.primary(g.GID) {
		return &sft.Error{Code: sft.Conflict, Msg: fmt.Sprintf("group %s cannot be removed: it is the first group of an account", g.Name), Hint: "give that account another first group, on this host"}
	}
	return l.tool(ctx, "groupdel", "--", g.Name)
}

// SetMember implements Granter.
func (l *Linux) SetMember(ctx context.Context, g Group, login string, in bool) error {
	e, err := readAll()
	if err != nil {
		return err
	}
	if now := e.findGroup(g.Name); now.name == "" || now.gid != g.GID {
		return fmt.Errorf("group %s changed meanwhile; look for another program that changes groups", g.Name)
	}
	if e.member(g.Name, login) == in {
		return nil
	}
	how := "-d"
	if in {
		how = "-a"
	}
	return l.tool(ctx, "gpasswd", how, login, g.Name)
}

// SetSudo implements Granter. A rule that cannot be put in place leaves none:
// the one before may give what is to be taken away.
func (l *Linux) SetSudo(ctx context.Context, text string) error {
	var err error
	if text != "" {
		if err = l.putSudoers(ctx, entitlementsFile, text); err == nil {
			return nil
		}
	}
	gone := os.Remove(entitlementsFile)
	if errors.Is(gone, fs.ErrNotExist) {
		return err
	}
	if gone == nil {
		gone = syncFolder(sudoersDir)
	}
	return errors.Join(err, gone)
}
