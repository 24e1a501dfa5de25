package broker

import (
	"os"
	"path/filepath"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/musterfleet/muster"
)

// lockStore makes the folder and keeps other brokers out of it until unlock is
// called or the process ends. The server itself does not: two would destroy
// each other's files.
func lockStore(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, muster.Errorf(muster.Unavailable, "broker: make its folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "broker.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, muster.Errorf(muster.Unavailable, "broker: its folder cannot be written to: %w", err).
			WithHint("it must belong to the user that the broker runs as, on a disk that can be written to")
	}
	locked, err := tryLock(f)
	if !locked {
		_ = f.Close() // nothing was written
		if err != nil {
			return nil, muster.Errorf(muster.Unavailable, "broker: lock its folder %s: %w", dir, err)
		}
		return nil, muster.Errorf(muster.Conflict, "broker: another broker uses the folder %s", dir).
			WithHint("stop it first, or choose another folder")
	}
	return func() { _ = f.Close() }, nil // closing releases the lock
}

// checkStore returns an error if the folder has a stream that the server has
// not recovered. It only warns of it; made anew by the same name, the stream
// would be empty, and what it held would be lost without a word.
func (b *Broker) checkStore(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", "*", "meta.inf"))
	if err != nil {
		return muster.Errorf(muster.Internal, "broker: look at its folder: %w", err)
	}
	info, err := b.server.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Limit: maxAccounts})
	if err != nil {
		return muster.Errorf(muster.Internal, "broker: list its streams: %w", err)
	}
	type stream struct{ account, name string }
	there := make(map[stream]bool)
	for _, a := range info.AccountDetails {
		for _, s := range a.Streams {
			there[stream{a.Id, s.Name}] = true
		}
	}
	for _, f := range files {
		folder := filepath.Dir(f)
		if s := (stream{filepath.Base(filepath.Dir(filepath.Dir(folder))), filepath.Base(folder)}); !there[s] {
			return muster.Errorf(muster.Corrupt, "broker: the stream %s in %s cannot be read; what it holds is damaged", s.name, folder).
				WithHint("bring its files back from a backup; or move this folder away, and what was in it is lost")
		}
	}
	return nil
}

// maxAccounts bounds the accounts that are listed: a fleet has three.
const maxAccounts = 100
