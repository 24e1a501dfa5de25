package app

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

// A policyFile is a node's policy, read again when the file changes. While the
// file is missing or wrong, everything is denied.
type policyFile struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex // guards the fields below
	known  bool       // at, size and policy are those of the file as it was last read
	at     time.Time
	size   int64
	policy *aaa.Policy
	told   string // what was last complained of, empty for nothing
}

// current returns the policy in force: nil when there is none, and one that
// denies everything when it cannot be read.
func (p *policyFile) current() *aaa.Policy {
	p.mu.Lock()
	defer p.mu.Unlock()
	info, err := os.Stat(p.path)
	if err == nil && p.known && info.ModTime().Equal(p.at) && info.Size() == p.size {
		return p.policy
	}
	// What cannot be opened is tried each time: permission that is given changes
	// neither time nor size.
	p.known = false
	var data []byte
	if err == nil {
		data, err = os.ReadFile(p.path)
	}
	if err != nil {
		return p.unusable(withoutFolder(err))
	}
	p.known, p.at, p.size = true, info.ModTime(), info.Size()
	if p.policy, err = aaa.ParsePolicy(filepath.Base(p.path), data); err != nil {
		p.policy = p.unusable(err)
		return p.policy
	}
	p.told = ""
	p.log.Info("policy read", "component", "app", "file", p.path)
	return p.policy
}

// unusable complains, once, and returns the policy of a node without a usable
// file.
func (p *policyFile) unusable(err error) *aaa.Policy {
	missing := errors.Is(err, fs.ErrNotExist)
	if text := err.Error(); text != p.told {
		p.told = text
		if missing {
			p.log.Warn("there is no policy; this node denies every command", "component", "app", "file", p.path)
		} else {
			p.log.Error("the policy cannot be used; this node denies every command until it can", "component", "app", "file", p.path, "err", err)
		}
	}
	if missing {
		return nil
	}
	return aaa.UnreadablePolicy(err)
}

// withoutFolder takes the folder out of an error about a file: a refusal tells it
// to callers, to whom the folders of the node are nothing.
func withoutFolder(err error) error {
	at, ok := errors.AsType[*fs.PathError](err)
	if !ok {
		return err
	}
	return muster.Errorf(muster.Unavailable, "%s: %w", filepath.Base(at.Path), at.Err)
}
