package delivery

import (
	"fmt"
	"testing"
	"time"
)

// What is over leaves no timer until its deadline, which may be days ahead: of a
// busy node these would be millions. What waits still has its own.
func TestTimersOfWhatIsOver(t *testing.T) {
	b, j := New(Config{Memory: 100}, State{}, t0), &model{}
	blocks, waits := by("bob", "blocks", 0, 100*time.Hour), by("bob", "waits", 0, 50*time.Hour)
	blocks.Command.Method, waits.Command.Method = "other", "other"
	b.Deliver(t0, blocks)
	b.Deliver(t0, waits)
	b.Cancel(t0, Cancel{ID: "not come", Caller: "bob", Until: at(60 * time.Hour)})
	for i := range 20_000 {
		through(b, j, t0, by("alice", fmt.Sprint("a", i), 0, 1000*time.Hour))
	}
	if n := len(b.timers.h); n > 2*pruneFrom {
		t.Errorf("%d timers, though %d commands are held", n, len(b.commands))
	}
	if b.Tick(at(51 * time.Hour)); !b.commands["waits"].Report.State().Final() {
		t.Error("a command that waits does not expire")
	}
	if b.Tick(at(85 * time.Hour)); b.cancels != 0 {
		t.Error("a withdrawal does not end")
	}
}
