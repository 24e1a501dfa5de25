package client

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// Follow calls handle for each change of the send's commands and for their
// output, beginning with what is known already, and returns nil when all of
// them are final. Output comes before the final state that it belongs to.
// While the broker is away it waits, says so, and goes on where it was.
func (c *Client) Follow(ctx context.Context, id muster.CommandID, handle func(Update) error) error {
	return c.followWith(ctx, id, &follower{handle: handle})
}

// FollowStates is Follow for whoever has no use for output, or reads it with
// Output in the end: no output is asked for, nor waited for, and no update is a
// Chunk.
func (c *Client) FollowStates(ctx context.Context, id muster.CommandID, handle func(Update) error) error {
	return c.followWith(ctx, id, &follower{handle: handle, statesOnly: true})
}

func (c *Client) followWith(ctx context.Context, id muster.CommandID, f *follower) error {
	f.streams, f.final, f.told = make(map[streamKey]*streamState), make(map[muster.Key]bool), make(map[muster.Key]int)
	f.link.tell = func(l Link) error { return f.handle(Update{Link: &l}) }
	err := f.link.again(ctx, c, func(conn *bus.Conn) error { return f.follow(ctx, conn, id) })
	if errors.Is(err, errFinished) {
		return nil
	}
	return err
}

type streamKey struct {
	key    muster.Key
	stream string
}

// streamState is how much of one stream has been handed on.
type streamState struct {
	attempt int
	offset  int64
	heard   time.Time
}

// A follower joins history and output, which come from two streams.
type follower struct {
	handle  func(Update) error
	ledger  *ledger
	streams map[streamKey]*streamState
	final   map[muster.Key]bool // told, and not told again
	waiting []*Status           // final, but output is still to come
	told    map[muster.Key]int  // length of the history that was told
	known   bool                // there is such a send
	read    bool                // the history, up to now
	latest  time.Time           // of the output, by the broker's clock
	link    linkWatch

	statesOnly bool // no output is read
}

var errFinished = errors.New("all commands are final")

// follow works on one connection. The history is read from its beginning, the
// output from where it was: what was told before is recognised.
func (f *follower) follow(ctx context.Context, conn *bus.Conn, id muster.CommandID) error {
	if !f.known {
		if err := exists(ctx, conn, id); err != nil {
			return err
		}
		f.known = true
	}
	if err := f.link.hear(); err != nil {
		return err
	}
	f.ledger, f.waiting, f.read = newLedger(conn.Subjects()), nil, false
	for _, st := range f.streams {
		st.heard = time.Now() // what came meanwhile has yet to be read
	}
	subjects, any := conn.Subjects(), muster.Key{ID: id, Node: ">"}
	readings := []reading{{bus.Query{Stream: bus.StreamHistory, Filters: []string{subjects.Sent(id), subjects.Report(any)}}, f.report}}
	if !f.statesOnly {
		readings = append(readings, reading{bus.Query{Stream: bus.StreamOutput, Filters: []string{subjects.Output(any, "*")}, Since: f.latest}, f.output})
	}
	return f.link.follow(ctx, conn, readings, f.expire)
}

// report takes a message of the history.
func (f *follower) report(m bus.Stored) error {
	for _, s := range f.ledger.add(m) {
		if err := f.status(s); err != nil {
			return err
		}
	}
	if m.Pending > 0 {
		return nil // more of the past is to come
	}
	f.read = true
	return f.settle(time.Now())
}

// output takes a part of what a run wrote.
func (f *follower) output(m bus.Stored) error {
	f.latest = m.Time
	if err := f.chunk(m); err != nil {
		return err
	}
	return f.settle(time.Now())
}

// status tells a change, unless it is a final state whose output is not
// complete.
func (f *follower) status(s *Status) error {
	if s.State.Final() {
		if !f.final[s.Key] {
			f.waiting = append(slices.DeleteFunc(f.waiting, func(o *Status) bool { return o == s }), s)
		}
		return nil
	}
	return f.tell(*s)
}

func (f *follower) tell(s Status) error {
	if f.told[s.Key] >= len(s.History) {
		return nil
	}
	f.told[s.Key] = len(s.History)
	s.History = slices.Clone(s.History)
	return f.handle(Update{Status: &s})
}

// settle tells the final states whose output is complete or no longer comes.
func (f *follower) settle(now time.Time) error {
	for _, s := range slices.Clone(f.waiting) {
		complete, err := f.complete(s, now)
		if err != nil {
			return err
		}
		if !complete {
			continue
		}
		f.waiting = slices.DeleteFunc(f.waiting, func(o *Status) bool { return o == s })
		f.final[s.Key] = true
		if err := f.tell(*s); err != nil {
			return err
		}
	}
	if !f.read {
		return nil // a rolling send may have further commands
	}
	for key := range f.ledger.commands {
		if !f.final[key] {
			return nil
		}
	}
	return errFinished
}

// expire lets time pass.
func (f *follower) expire(now time.Time) error {
	if !f.read {
		return nil
	}
	for _, s := range f.ledger.commands {
		if e := f.ledger.infer(*s, now); e.Inferred && !f.final[s.Key] {
			f.final[s.Key] = true
			if err := f.tell(e); err != nil {
				return err
			}
		}
	}
	return f.settle(now)
}

// complete hands on what a report carries inline, and reports whether all
// output of the last attempt was handed on.
func (f *follower) complete(s *Status, now time.Time) (bool, error) {
	if s.Result == nil || f.statesOnly {
		return true, nil
	}
	done := true
	for stream, o := range map[string]muster.Output{bus.Stdout: s.Result.Stdout, bus.Stderr: s.Result.Stderr} {
		st := f.stream(streamKey{s.Key, stream}, attempts(s))
		if int64(len(o.Inline)) == o.Size {
			if err := f.emit(s.Key, stream, st, st.offset, o.Inline[min(st.offset, o.Size):]); err != nil {
				return false, err
			}
			continue
		}
		if st.offset < o.Size && now.Sub(st.heard) < DefaultOutputWait {
			done = false
		}
	}
	return done, nil
}

// attempts returns the number of the last run.
func attempts(s *Status) int {
	for _, t := range slices.Backward(s.History) {
		if t.State == muster.Running {
			return t.Attempt
		}
	}
	return 0
}

// stream returns the state of a stream. A new attempt begins it anew.
func (f *follower) stream(k streamKey, attempt int) *streamState {
	st := f.streams[k]
	if st == nil {
		st = &streamState{attempt: attempt, heard: time.Now()}
		f.streams[k] = st
	}
	if attempt > st.attempt {
		st.attempt, st.offset = attempt, 0
	}
	return st
}

func (f *follower) chunk(m bus.Stored) error {
	key, stream, ok := f.ledger.subjects.OutputKey(m.Subject)
	offset, attempt, valid := chunkHeader(m)
	if !ok || !valid || f.final[key] {
		return nil
	}
	st := f.stream(streamKey{key, stream}, attempt)
	if attempt != 0 && attempt < st.attempt {
		return nil // of an attempt that is over
	}
	st.heard = time.Now()
	if offset > st.offset || offset+int64(len(m.Data)) <= st.offset {
		return nil // handed on before, or a gap: the oldest output was dropped by the broker
	}
	return f.emit(key, stream, st, st.offset, m.Data[st.offset-offset:])
}

func (f *follower) emit(key muster.Key, stream string, st *streamState, offset int64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	st.offset = offset + int64(len(data))
	return f.handle(Update{Chunk: &Chunk{Key: key, Stream: stream, Offset: offset, Data: data}})
}

func chunkHeader(m bus.Stored) (offset int64, attempt int, ok bool) {
	get := func(name string) string {
		if v := m.Header[name]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	offset, err := strconv.ParseInt(get(bus.HeaderOffset), 10, 64)
	if err != nil || offset < 0 {
		return 0, 0, false
	}
	attempt, err = strconv.Atoi(get(bus.HeaderAttempt))
	return offset, attempt, err == nil || get(bus.HeaderAttempt) == ""
}

// Output writes the whole of a stream of a command's last run to w. What the
// node has not sent yet is waited for, up to DefaultOutputWait for each part;
// so is a broker that is away.
func (c *Client) Output(ctx context.Context, s Status, stream string, w io.Writer) error {
	if s.Result == nil {
		return nil
	}
	o := s.Result.Stdout
	if stream == bus.Stderr {
		o = s.Result.Stderr
	}
	if int64(len(o.Inline)) == o.Size {
		_, err := w.Write(o.Inline)
		return err
	}
	st := &streamState{attempt: attempts(&s)}
	var err error
	var pace backoff
	for last := time.Now(); ; {
		before := st.offset
		pace.begin()
		err = c.with(ctx, func(conn *bus.Conn) error { return copyOutput(ctx, conn, s.Key, stream, o.Size, st, w) })
		if st.offset > before {
			last = time.Now()
		}
		// What was lost may be the connection only: go on where it was.
		if muster.KindOf(err) != muster.Unavailable || time.Since(last) >= DefaultOutputWait || !pace.wait(ctx) {
			break
		}
	}
	if h, ok := errors.AsType[*handlerError](err); ok {
		return h.err // of w
	}
	switch {
	case st.offset < o.Size && ctx.Err() == nil && muster.KindOf(err) == muster.Unavailable:
		return muster.Errorf(muster.Unavailable, "the connection to the broker was lost after %d of %d bytes of %s: %w", st.offset, o.Size, stream, err).
			WithHint("the rest is with the broker; ask again when it is back")
	case st.offset < o.Size && (err == nil || ctx.Err() == nil):
		return muster.Errorf(muster.Unavailable, "%d of %d bytes of %s are here", st.offset, o.Size, stream).
			WithHint("the node sends the rest when it is connected; the broker keeps output for a limited time")
	}
	return err
}

func copyOutput(ctx context.Context, conn *bus.Conn, key muster.Key, stream string, size int64, st *streamState, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(DefaultOutputWait, cancel)
	defer idle.Stop()
	q := bus.Query{Stream: bus.StreamOutput, Filters: []string{conn.Subjects().Output(key, stream)}}
	err := conn.Follow(ctx, q, func(m bus.Stored) error {
		idle.Reset(DefaultOutputWait)
		offset, attempt, ok := chunkHeader(m)
		if ok && (attempt == 0 || attempt == st.attempt) && offset <= st.offset && offset+int64(len(m.Data)) > st.offset {
			n, err := w.Write(m.Data[st.offset-offset:])
			st.offset += int64(n)
			if err != nil {
				return handled(err)
			}
		}
		if st.offset >= size {
			return errFinished
		}
		return nil
	})
	if errors.Is(err, errFinished) {
		return nil
	}
	return err
}
