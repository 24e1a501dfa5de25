package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// Output is sent in chunks of at most chunkSize, once a run has lasted for
// liveDelay. What a shorter run writes fits into its report or follows it.
const (
	chunkSize = 256 << 10
	liveDelay = 200 * time.Millisecond
)

// uploads sends the output of runs to the broker: while they run, and what is
// left afterwards when it does not fit into a report.
type uploads struct {
	a    *Agent
	wg   sync.WaitGroup
	ctx  context.Context // ends with the agent
	mu   sync.Mutex      // guards jobs
	jobs map[muster.CommandID]*job
}

// A job is the upload of both streams of one run.
type job struct {
	key    muster.Key
	spools []*spool
	timer  *time.Timer
	cancel context.CancelFunc
	ctx    context.Context
	once   sync.Once
}

func newUploads(a *Agent) *uploads { return &uploads{a: a, jobs: make(map[muster.CommandID]*job)} }

// live begins to send the output of a run that lasts. The returned function
// says that the run is over.
func (u *uploads) live(key muster.Key, streams ...*spool) (stop func()) {
	j := &job{key: key, spools: streams}
	j.ctx, j.cancel = context.WithCancel(u.ctx)
	u.mu.Lock()
	old := u.jobs[key.ID]
	u.jobs[key.ID] = j
	u.mu.Unlock()
	if old != nil {
		old.cancel() // of an earlier attempt
	}
	j.timer = time.AfterFunc(liveDelay, func() { u.begin(j) })
	return func() { j.timer.Stop() }
}

// begin starts the goroutines of a job, once.
func (u *uploads) begin(j *job) {
	j.once.Do(func() {
		for _, s := range j.spools {
			u.wg.Go(func() { u.send(j.ctx, j.key, s.path, s.stream, s.attempt, s) })
		}
	})
}

// finished settles the output of a run: what fits into the report needs no
// more; the rest is sent to its end.
func (u *uploads) finished(id muster.CommandID, r muster.Result) {
	u.mu.Lock()
	j := u.jobs[id]
	delete(u.jobs, id)
	u.mu.Unlock()
	if j == nil {
		return
	}
	if r.Stdout.Size > muster.MaxInline || r.Stderr.Size > muster.MaxInline {
		u.begin(j)
		return
	}
	j.cancel()
	u.a.spools.remove(id)
}

// resume begins to send what an earlier agent left.
func (u *uploads) resume(ctx context.Context) {
	left, err := u.a.spools.left()
	if err != nil {
		u.a.log.Error("output of earlier runs cannot be listed", "err", err)
	}
	u.wg.Go(func() {
		for _, path := range left {
			id, stream, ok := strings.Cut(filepath.Base(path), ".")
			if !ok || u.replaced(muster.CommandID(id)) {
				continue
			}
			st, err := os.Stat(path)
			if err != nil {
				continue // it was sent meanwhile, or its command ran again
			}
			u.send(ctx, muster.Key{ID: muster.CommandID(id), Node: u.a.o.Node}, path, stream, 0, complete(st.Size()))
		}
	})
}

func (u *uploads) replaced(id muster.CommandID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.jobs[id] != nil
}

func (u *uploads) wait() { u.wg.Wait() }

// A growing stream says how much of it can be read.
type growing interface {
	length() (size int64, ended bool)
	grown() <-chan struct{}
}

func (s *spool) grown() <-chan struct{} { return s.wake.c }

type complete int64

func (c complete) length() (int64, bool)  { return int64(c), true }
func (c complete) grown() <-chan struct{} { return nil }

// send stores a stream's bytes with the broker, in order, until it has ended.
// How far it came is noted beside the file for the next agent.
func (u *uploads) send(ctx context.Context, key muster.Key, path, stream string, attempt int, s growing) {
	buf := make([]byte, 0, 32<<10)
	for offset := sentSoFar(path); ; {
		size, ended := s.length()
		if offset >= size {
			if ended {
				break
			}
			select {
			case <-s.grown():
				continue
			case <-ctx.Done():
				return
			}
		}
		n := int(min(size-offset, chunkSize))
		if cap(buf) < n {
			buf = make([]byte, n)
		}
		n, err := readAt(path, offset, buf[:n])
		if n == 0 || err != nil {
			u.a.log.Error("output cannot be read back; the rest of it is lost", "command", key.ID, "stream", stream, "err", err)
			return
		}
		if err := u.store(ctx, key, stream, attempt, offset, buf[:n]); err != nil {
			return // ctx has ended; the file stays for the next agent
		}
		offset += int64(n)
		_ = os.WriteFile(path+".sent", strconv.AppendInt(nil, offset, 10), 0o600) // if lost, more is sent again
	}
	_ = os.Remove(path)
	_ = os.Remove(path + ".sent")
}

func (u *uploads) store(ctx context.Context, key muster.Key, stream string, attempt int, offset int64, data []byte) error {
	header := map[string]string{bus.HeaderOffset: strconv.FormatInt(offset, 10)}
	if attempt > 0 {
		header[bus.HeaderAttempt] = strconv.Itoa(attempt)
	}
	return u.a.reporter.store(ctx, bus.Outgoing{
		Subject: u.a.subjects().Output(key, stream), Header: header, Data: data,
		ID: fmt.Sprintf("%s/%s/%d/%d/%d", key, stream, attempt, offset, len(data)),
	})
}

func sentSoFar(path string) int64 {
	data, err := os.ReadFile(path + ".sent")
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
