package broker

import (
	"context"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/shirou/gopsutil/v4/disk"
)

// watchEvery is how often the disk is looked at.
const watchEvery = time.Second

// watch keeps the server away from a disk without room. The server does not
// answer what it cannot write, and after one failed write it writes nothing
// more until it is started again. So before that, storing is refused with an
// error that says why; and a server that met a full disk all the same is
// started anew when there is room.
func (b *Broker) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if u, err := disk.Usage(b.o.StoreDir); err == nil {
			b.look(int64(min(u.Free, 1<<62)))
		}
		select {
		case <-tick.C:
		case <-b.quit:
			return
		}
	}
}

// look compares the free space with the reserve. What refused is taken up
// again with twice the reserve, so that it does not change to and fro.
func (b *Broker) look(free int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	full := free < b.o.Reserve || b.full && free < 2*b.o.Reserve
	if full != b.full {
		b.full = full
		b.limit(free)
	}
	if !full && b.broken.Swap(false) {
		b.restart()
	}
}

// limit tells the server whether it may store.
func (b *Broker) limit(free int64) {
	if b.full {
		b.log.Error("the disk has no room: nothing is stored until it has", "free", free, "reserve", b.o.Reserve, "folder", b.o.StoreDir)
	} else {
		b.log.Warn("the disk has room again", "free", free)
	}
	if b.o.Auth == nil {
		return // without accounts there is nothing to set a limit of
	}
	for key := range b.o.Auth.Accounts {
		token, err := b.resolver.Fetch(key)
		if err != nil {
			b.log.Error("an account is not found", "account", key, "err", err)
			continue
		}
		claims, err := jwt.DecodeAccountClaims(token)
		if err == nil {
			err = b.apply(key, claims)
		}
		if err != nil {
			b.log.Error("the limit of an account cannot be changed", "account", key, "err", err)
		}
	}
}

// restart starts the server anew on what is on disk, which is all that it gave
// a receipt for.
func (b *Broker) restart() {
	b.log.Warn("the server could not write; it is started again")
	b.server.Shutdown()
	b.server.WaitForShutdown()
	if err := b.start(context.Background()); err != nil {
		b.log.Error("the server does not start; trying again", "err", err)
		b.broken.Store(true)
	}
}
