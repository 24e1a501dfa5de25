package app

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/musterfleet/muster/internal/aaa"
)

// A policyFile is a node's policy, read again when the file changes. While the
// file is missing or wrong, everything is denied.
type policyFile struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex
	known  bool // what follows describes the file as it was last seen
	at     time.Time
	size   int64
	policy *aaa.Policy
}

// current returns the policy in force, nil when all is denied.
func (p *policyFile) current() *aaa.Policy {
	p.mu.Lock()
	defer p.mu.Unlock()
	info, err := os.Stat(p.path)
	if err != nil {
		if p.policy != nil || !p.known {
			p.complain(err)
		}
		p.known, p.at, p.size, p.policy = true, time.Time{}, -1, nil
		return nil
	}
	if p.known && info.ModTime().Equal(p.at) && info.Size() == p.size {
		return p.policy
	}
	p.known, p.at, p.size, p.policy = true, info.ModTime(), info.Size(), nil
	data, err := os.ReadFile(p.path)
	if err == nil {
		var read *aaa.Policy
		if read, err = aaa.ParsePolicy(p.path, data); err == nil {
			p.policy = read
			p.log.Info("policy read", "component", "app", "file", p.path)
			return p.policy
		}
	}
	p.complain(err)
	return nil
}

func (p *policyFile) complain(err error) {
	if errors.Is(err, fs.ErrNotExist) {
		p.log.Warn("there is no policy; this node denies every command", "component", "app", "file", p.path)
		return
	}
	p.log.Error("the policy cannot be used; this node denies every command until it can", "component", "app", "file", p.path, "err", err)
}
