package methods

import (
	"errors"
	"os"
	"os/user"
	"strconv"

	"github.com/musterfleet/muster"
)

// An account is the user that a process runs as.
type account struct {
	uid, gid   uint32
	groups     []uint32 // supplementary
	name, home string
	foreign    bool // not the agent's own
}

// lookupAccount finds a user by name. It fails with kind NotFound, or Denied
// when this process may not become that user.
func lookupAccount(name string) (*account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
			return nil, muster.Errorf(muster.NotFound, "user %q does not exist here", name)
		}
		return nil, muster.Errorf(muster.Failed, "user %q: %w", name, err)
	}
	a := &account{name: u.Username, home: u.HomeDir}
	if self, err := user.Current(); err == nil && self.Uid == u.Uid {
		return a, nil
	}
	a.foreign = true
	if os.Geteuid() != 0 { // -1 on Windows
		return nil, muster.Errorf(muster.Denied, "user %q: only an agent that runs as root can run commands as another user", name)
	}
	if err := a.identify(u); err != nil {
		return nil, muster.Errorf(muster.Failed, "user %q: %w", name, err)
	}
	return a, nil
}

// identify takes over the numbers of the user.
func (a *account) identify(u *user.User) (err error) {
	if a.uid, err = number32(u.Uid); err != nil {
		return err
	}
	if a.gid, err = number32(u.Gid); err != nil {
		return err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return err
	}
	for _, id := range ids {
		gid, err := number32(id)
		if err != nil {
			return err
		}
		a.groups = append(a.groups, gid)
	}
	return nil
}

// environment returns the variables by which programs know their user.
func (a *account) environment() []string {
	return []string{"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name}
}

func number32(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}
