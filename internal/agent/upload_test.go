package agent

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/musterfleet/muster"
)

// What fits into a report needs no upload; what does not waits for a session,
// on disk, and ends with the agent.
func TestUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		a := &Agent{log: slog.New(slog.DiscardHandler), spools: testSpools(t, 1<<20), reporter: newReporter()}
		a.uploads = newUploads(a)
		a.uploads.ctx = ctx
		run := func(id muster.CommandID, size int) {
			out, errs := a.spools.open(id, 1)
			stop := a.uploads.live(muster.Key{ID: id, Node: "n"}, out, errs)
			if _, err := io.Copy(out, bytes.NewReader(make([]byte, size))); err != nil {
				t.Error(err)
			}
			stop()
			a.uploads.finished(id, muster.Result{Stdout: out.finish(), Stderr: errs.finish()})
		}
		run("small", muster.MaxInline)
		run("large", muster.MaxInline+1)
		a.uploads.finished("unknown", muster.Result{})
		time.Sleep(time.Hour) // without a broker
		left, err := a.spools.left()
		if err != nil || len(left) != 1 || left[0] != a.spools.path("large", "stdout") {
			t.Errorf("left: %q, %v; want what the report does not hold", left, err)
		}
		if a.uploads.replaced("large") || len(a.uploads.jobs) != 0 {
			t.Error("the run is over, and its job is kept")
		}
		cancel()
		a.uploads.wait()
		if st, err := os.Stat(left[0]); err != nil || st.Size() != muster.MaxInline+1 {
			t.Errorf("the next agent finds %v, %v", st, err)
		}
	})
}
