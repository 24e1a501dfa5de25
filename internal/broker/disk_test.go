package broker

import (
	"errors"
	"log/slog"
	"testing"
)

// A server that failed to write is started again, but not before there is room.
func TestRestartWhenThereIsRoom(t *testing.T) {
	b, err := Start(t.Context(), Options{StoreDir: t.TempDir(), Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	close(b.quit) // the test looks, not the clock
	b.watching.Wait()
	b.quit = make(chan struct{})
	t.Cleanup(b.Stop)
	first := b.server
	l := newLogger(slog.New(slog.DiscardHandler), &b.broken)
	l.Errorf("JetStream stream '%s' critical write error: %v", "S", errors.New("no space left on device"))
	b.look(0)
	if !b.full || b.server != first {
		t.Error("without room it is to wait")
	}
	b.look(1) // not yet twice the reserve
	if !b.full || b.server != first {
		t.Error("with little room it is to wait")
	}
	b.look(2)
	if b.full || b.server == first {
		t.Error("with room it is to be started again")
	}
	again := b.server
	l.Errorf("an error of another kind")
	b.look(2)
	if b.server != again {
		t.Error("it was started again for no reason")
	}
	c, err := b.InProcessConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// How much the server may store is not what was free when it started: the disk
// may have been full then.
func TestRoomAtTheStartIsNoLimit(t *testing.T) {
	for limit, want := range map[int64]int64{0: noLimit, 1 << 30: 1 << 30} {
		b, err := Start(t.Context(), Options{StoreDir: t.TempDir(), MaxStore: limit})
		if err != nil {
			t.Fatal(err)
		}
		if got := b.server.JetStreamConfig().MaxStore; got != want {
			t.Errorf("with the limit %d it may store %d bytes, want %d", limit, got, want)
		}
		b.Stop()
	}
}
