package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
)

// A watch follows one send: it keeps the states, and prints what the runs
// write while they write it.
type watch struct {
	p      *program
	c      SDK
	id     muster.CommandID
	live   bool // print output
	status map[muster.NodeName]client.Status
	shown  map[streamKey]*shown
	onDone func(client.Status) error // told once of each final state; may be nil
	pad    int                       // width of the widest node name
	total  int
	drawn  bool // a progress line is on the terminal
	away   bool // the broker is
	since  time.Time
	gone   map[muster.NodeName]bool // nodes that were told to be away

	mu sync.Mutex // held by whoever prints: the follower, and lookAround
}

type streamKey struct {
	node   muster.NodeName
	stream string
}

// shown is how much of a stream was printed.
type shown struct {
	offset int64
	rest   []byte // of a line that has not ended
	closed bool
}

func (p *program) watch(c SDK, live bool) *watch {
	return &watch{p: p, c: c, live: live, status: map[muster.NodeName]client.Status{}, shown: map[streamKey]*shown{}, gone: map[muster.NodeName]bool{}}
}

// expect makes the commands of a receipt known before their first report.
func (w *watch) expect(r client.Receipt, req client.Request, now client.Status) {
	w.id = r.ID
	for _, n := range r.Nodes {
		if _, known := w.status[n]; known {
			continue
		}
		now.Key, now.ID, now.Node = muster.Key{ID: r.ID, Node: n}, r.ID, n
		now.Method, now.Input, now.Deadline, now.State = req.Method, req.Input, r.Deadline, muster.Queued
		w.status[n] = now
		w.pad = max(w.pad, len(n))
	}
	w.total = len(w.status)
}

// all returns the states sorted by node.
func (w *watch) all() []client.Status {
	var all []client.Status
	for _, s := range w.status {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b client.Status) int { return strings.Compare(string(a.Node), string(b.Node)) })
	return all
}

// final reports whether the nodes, or all when there are none, have a final
// state.
func (w *watch) final(nodes []muster.NodeName) bool {
	if nodes == nil {
		for _, s := range w.status {
			if !s.State.Final() {
				return false
			}
		}
		return true
	}
	for _, n := range nodes {
		if !w.status[n].State.Final() {
			return false
		}
	}
	return true
}

var errEnough = errors.New("nothing more to wait for")

// until follows the send until the commands of the nodes are final; nil is all
// commands.
func (w *watch) until(ctx context.Context, nodes []muster.NodeName) error {
	defer w.end() // when lookAround has ended
	if nodes != nil && w.final(nodes) {
		return nil
	}
	looking, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.lookAround(looking, nodes) })
	defer wg.Wait()
	defer stop()
	follow := w.c.Follow
	if !w.live { // output that is printed at all is read in the end, once
		follow = w.c.FollowStates
	}
	err := follow(ctx, w.id, func(u client.Update) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if err := w.update(ctx, u); err != nil {
			return err
		}
		if nodes != nil && w.final(nodes) {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// lookEvery is how often those are looked for who are waited for: as often as
// nodes say that they are there.
const lookEvery = 15 * time.Second

// lookAround says which of the nodes that are waited for, nil for all, went
// away meanwhile, and which are back.
func (w *watch) lookAround(ctx context.Context, nodes []muster.NodeName) {
	for sleep(ctx, lookEvery) {
		w.mu.Lock()
		waited := w.waited(nodes)
		if w.away {
			waited = nil
		}
		w.mu.Unlock()
		if len(waited) == 0 {
			continue
		}
		if away, err := w.c.Away(ctx, waited); err == nil { // if not, the link tells
			w.mu.Lock()
			w.presence(w.waited(nodes), away)
			w.mu.Unlock()
		}
	}
}

// waited returns the nodes of the list, nil for all, that have not finished.
func (w *watch) waited(nodes []muster.NodeName) (list []muster.NodeName) {
	for n, s := range w.status {
		if !s.State.Final() && (nodes == nil || slices.Contains(nodes, n)) {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// presence tells what has changed.
func (w *watch) presence(waited []muster.NodeName, away map[muster.NodeName]time.Time) {
	var left, back []muster.NodeName
	for _, n := range waited {
		switch _, isAway := away[n]; {
		case isAway && !w.gone[n]:
			left = append(left, n)
		case !isAway && w.gone[n]:
			back = append(back, n)
		}
		if _, w.gone[n] = away[n]; !w.gone[n] {
			delete(w.gone, n)
		}
	}
	if len(left)+len(back) == 0 {
		return
	}
	w.clear()
	if len(left) > 0 {
		are := "they are"
		if len(left) == 1 {
			are = "it is"
		}
		w.p.say("away: %s; waiting until %s back; Ctrl-C ends only the watching of %s", nodesText(left), are, w.id)
	}
	if len(back) > 0 {
		w.p.say("back: %s", nodesText(back))
	}
	w.progress()
}

func (w *watch) update(ctx context.Context, u client.Update) error {
	switch {
	case u.Link != nil:
		w.link(*u.Link)
	case u.Chunk != nil:
		w.chunk(*u.Chunk)
	case u.Status != nil:
		s := *u.Status
		before, known := w.status[s.Node]
		if known && before.State.Final() && !before.Inferred {
			return nil // of an earlier batch, said again
		}
		w.status[s.Node] = s
		w.pad = max(w.pad, len(s.Node))
		w.total = len(w.status)
		if s.State.Final() {
			if err := w.finish(ctx, s); err != nil {
				return err
			}
			if w.onDone != nil && !before.State.Final() || w.onDone != nil && !known {
				if err := w.onDone(s); err != nil {
					return err
				}
			}
		}
	}
	w.progress()
	return nil
}

// link says that the broker went away, or is back.
func (w *watch) link(l client.Link) {
	w.clear()
	if l.Lost == w.away {
		return
	}
	if w.away = l.Lost; !l.Lost {
		w.p.say("broker back after %s; nothing was missed", short(l.Since.Sub(w.since)))
		return
	}
	w.since = l.Since
	w.p.say("broker away since %s; nodes go on with what they have, and this goes on when it is back; Ctrl-C ends only the watching of %s",
		l.Since.Local().Format("15:04:05"), w.id)
}

func (w *watch) stream(node muster.NodeName, name string) *shown {
	key := streamKey{node, name}
	if w.shown[key] == nil {
		w.shown[key] = &shown{}
	}
	return w.shown[key]
}

func (w *watch) chunk(c client.Chunk) {
	s := w.stream(c.Key.Node, c.Stream)
	if !w.live || s.closed {
		return
	}
	// An offset behind what was shown is that of a further attempt: chunks of
	// one attempt neither overlap nor repeat.
	if c.Offset < s.offset {
		w.flush(c.Key.Node, c.Stream, s)
	}
	s.offset = c.Offset + int64(len(c.Data))
	w.print(c.Key.Node, c.Stream, s, c.Data)
}

// finish prints what the live output missed, which is all of it when the run
// had ended before it was followed.
func (w *watch) finish(ctx context.Context, status client.Status) error {
	for _, name := range []string{"stdout", "stderr"} {
		s := w.stream(status.Node, name)
		if s.closed || !w.live {
			continue
		}
		if r := status.Result; r != nil {
			size := r.Stdout.Size
			if name == "stderr" {
				size = r.Stderr.Size
			}
			if size > s.offset {
				w.clear()
				skip := &tail{skip: s.offset, to: func(b []byte) { w.print(status.Node, name, s, b) }}
				if err := readOutput(ctx, w.c, status, name, skip); err != nil {
					if ctx.Err() != nil {
						return err
					}
					// The outcome is known all the same, so that following goes on.
					w.clear()
					w.p.say("%s %s", w.p.errTerm.paint(yellow, "warning:"), clean(err.Error()))
				}
			}
		}
		w.flush(status.Node, name, s)
		s.closed = true
		w.dropped(status, name)
	}
	return nil
}

// dropped says that a stream has more than is kept.
func (w *watch) dropped(s client.Status, stream string) {
	if s.Result == nil {
		return
	}
	out := s.Result.Stdout
	if stream == "stderr" {
		out = s.Result.Stderr
	}
	if out.Truncated > 0 {
		w.clear()
		w.p.say("%s %s wrote %d more bytes to %s, which its agent does not keep: see 'muster agent --help' for --max-output",
			w.p.errTerm.paint(yellow, "warning:"), s.Node, out.Truncated, stream)
	}
}

// A tail passes on what comes after the first bytes.
type tail struct {
	skip int64
	to   func([]byte)
}

func (t *tail) Write(b []byte) (int, error) {
	n := len(b)
	drop := min(t.skip, int64(n))
	t.skip -= drop
	if b = b[drop:]; len(b) > 0 {
		t.to(b)
	}
	return n, nil
}

// maxLine is the longest line that is held back until it ends.
const maxLine = 64 << 10

func (w *watch) print(node muster.NodeName, stream string, s *shown, data []byte) {
	s.rest = append(s.rest, data...)
	if i := bytes.LastIndexByte(s.rest, '\n'); i >= 0 {
		w.output(node, stream, s.rest[:i])
		s.rest = append(s.rest[:0], s.rest[i+1:]...)
	}
	if len(s.rest) > maxLine {
		w.flush(node, stream, s)
	}
}

func (w *watch) flush(node muster.NodeName, stream string, s *shown) {
	if len(s.rest) > 0 {
		w.output(node, stream, s.rest)
		s.rest = nil
	}
}

// output prints lines, of which the last needs no line break, in one go.
func (w *watch) output(node muster.NodeName, stream string, text []byte) {
	w.clear()
	to, on := w.p.stdout, w.p.outTerm
	if stream == "stderr" {
		to, on = w.p.stderr, w.p.errTerm
	}
	name := on.paint(nodeColor(string(node)), string(node)) + strings.Repeat(" ", max(0, w.pad-len(node))) + " | "
	var b strings.Builder
	for line := range strings.SplitSeq(string(text), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if on.is { // a file gets the bytes as they are
			line = cleanLine(line, on.color)
		}
		b.WriteString(name + line + "\n")
	}
	_, _ = io.WriteString(to, b.String()) // the summary fails as well
}

// maxNamed is how many nodes of a state are named.
const maxNamed = 3

// in returns the nodes whose commands are in a state, sorted.
func (w *watch) in(state muster.State) (names []string) {
	for n, s := range w.status {
		if s.State == state {
			names = append(names, string(n))
		}
	}
	slices.Sort(names)
	return names
}

// progress draws one line on stderr, on terminals only.
func (w *watch) progress() {
	if !w.p.errTerm.is {
		return
	}
	count := map[muster.State]int{}
	final := 0
	for _, s := range w.status {
		count[s.State]++
		if s.State.Final() {
			final++
		}
	}
	text := fmt.Sprintf("%d/%d", final, w.total)
	if w.away {
		text = "broker away  " + text
	}
	for _, s := range muster.States() {
		if count[s] > 0 {
			text += fmt.Sprintf("  %s %d", s, count[s])
			if !s.Final() && count[s] <= maxNamed {
				text += ": " + strings.Join(w.in(s), " ")
			}
		}
	}
	if w.p.errTerm.width > 1 { // a longer line could not be taken away again
		text = runewidth.Truncate(text, w.p.errTerm.width-1, "…")
	}
	w.clear()
	_, _ = io.WriteString(w.p.stderr, w.p.errTerm.paint(dim, text))
	w.drawn = true
}

func (w *watch) clear() {
	if w.drawn {
		_, _ = io.WriteString(w.p.stderr, "\r\x1b[K")
		w.drawn = false
	}
}

// end prints unfinished lines and takes the progress away.
func (w *watch) end() {
	w.clear()
	for key, s := range w.shown {
		w.flush(key.node, key.stream, s)
	}
}
