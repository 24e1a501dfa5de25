package agent

import (
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/method"
)

// Each interrupted command is told of its own processes.
func TestChildOf(t *testing.T) {
	now := time.Now()
	orphan := func(id muster.CommandID, pid int, age time.Duration) method.Orphan {
		return method.Orphan{Child: muster.Child{PID: pid, Started: now.Add(-age)}, Command: id}
	}
	ended := []method.Orphan{orphan("a", 1, 3), orphan("b", 2, 1), orphan("b", 3, 2), orphan("", 4, 9), orphan("b", 5, 1)}
	for id, want := range map[muster.CommandID]muster.Child{
		"a": {PID: 1, Started: now.Add(-3), Ended: 1}, "b": {PID: 3, Started: now.Add(-2), Ended: 3},
	} {
		if got := childOf(id, ended); got == nil || *got != want {
			t.Errorf("%s: got %+v, want %+v", id, got, want)
		}
	}
	if got := childOf("c", ended); got != nil {
		t.Errorf("a command without processes has %+v", got)
	}
}
