package delivery

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/musterfleet/muster"
)

// How ids are forgotten.
const (
	idMargin   = 5 * time.Minute  // after the deadline: the broker hands a command out until a minute after it
	sweepEvery = 10 * time.Minute // how often ids are looked through
	sweepMost  = 1000             // ids that are forgotten at once, so that commands do not wait for it
)

// A memory knows the commands that are over, in some 50 bytes each, so that none
// runs twice. It is bounded, and yet never full: at its limit it forgets the
// oldest of the caller that has the most, and knows of that caller from then on
// until when it forgot. So a flood of one caller takes nothing from the others,
// and a node takes new commands at any rate, for ever.
type memory struct {
	limit   int
	n       int
	content map[uint64]uint64 // of a command, by the key of its id
	callers map[string]*past  // by name; that of "" is always there, and holds for all
	next    time.Time         // of the next sweep
}

// A past is what is known of one caller's commands that are over.
type past struct {
	ids  fifo
	gone Forgotten
}

func newMemory(limit int, s State, now time.Time) *memory {
	m := &memory{limit: limit, content: make(map[uint64]uint64, len(s.Seen)), callers: map[string]*past{"": {}}, next: now}
	for _, f := range s.Forgotten {
		m.past(f.Caller).gone = f
	}
	for _, x := range s.Seen {
		m.add(x)
	}
	return m
}

func (m *memory) past(caller string) *past {
	p := m.callers[caller]
	if p == nil {
		p = &past{gone: Forgotten{Caller: caller}}
		m.callers[caller] = p
	}
	return p
}

func (m *memory) add(s Seen) {
	m.content[s.Key] = s.Content
	m.past(s.Caller).ids.push(item{s.Seq, s.Key, s.Issued, s.Deadline})
	m.n++
}

// pop forgets the oldest id of a caller, and returns its place in the journal.
func (m *memory) pop(p *past) uint64 {
	x := p.ids.pop()
	delete(m.content, x.key)
	m.n--
	p.gone.Issued, p.gone.Deadline = max(p.gone.Issued, x.issued), max(p.gone.Deadline, x.deadline)
	return x.seq
}

// largest is the caller of whom the most is remembered.
func (m *memory) largest() *past {
	var most *past
	for _, p := range m.callers {
		if most == nil || p.ids.n > most.ids.n || p.ids.n == most.ids.n && p.gone.Caller < most.gone.Caller {
			most = p
		}
	}
	return most
}

// mayHave returns what was forgotten that the command may be part of, if any.
func (m *memory) mayHave(c muster.Command, caller string) (Forgotten, bool) {
	issued, deadline := Seconds(c.IssuedAt), Seconds(c.Deadline)
	for _, name := range []string{caller, ""} {
		if p := m.callers[name]; p != nil && issued <= p.gone.Issued && deadline <= p.gone.Deadline {
			return p.gone, true
		}
	}
	return Forgotten{}, false
}

// remember notes a command that is over.
func (b *Inbox) remember(e *entry) {
	s := Seen{
		Seq: e.Seq, Key: KeyOf(e.Command.ID), Content: Content(e.Command, e.Report.Caller), Caller: e.Report.Caller,
		Issued: Seconds(e.Command.IssuedAt), Deadline: Seconds(e.Command.Deadline),
	}
	b.memory.add(s)
	b.write(Write{Remember: &s}, false)
	for b.memory.n > b.memory.limit {
		p := b.memory.largest()
		b.write(Write{Forget: b.memory.pop(p)}, false)
		b.writeGone(p.gone)
	}
}

func (b *Inbox) writeGone(f Forgotten) { b.write(Write{Forgot: &f}, false) }

// sweep forgets ids whose deadlines have passed. Should the clock be set back,
// what was forgotten still tells that they may have run.
func (b *Inbox) sweep(now time.Time) {
	m := b.memory
	if now.Before(m.next) {
		return
	}
	m.next = now.Add(sweepEvery)
	passed := Seconds(now.Add(-idMargin))
	left := sweepMost
	for _, name := range slices.Sorted(maps.Keys(m.callers)) {
		p, before := m.callers[name], m.n
		for left > 0 && p.ids.n > 0 && p.ids.head().deadline < passed {
			b.write(Write{Forget: m.pop(p)}, false)
			left--
		}
		switch all := m.callers[""]; {
		case p != all && p.ids.n == 0 && p.gone.Deadline < passed:
			// What holds for all costs nobody anything here: it is of deadlines
			// that have passed.
			all.gone.Issued, all.gone.Deadline = max(all.gone.Issued, p.gone.Issued), max(all.gone.Deadline, p.gone.Deadline)
			b.writeGone(all.gone)
			b.writeGone(Forgotten{Caller: name})
			delete(m.callers, name)
		case m.n < before:
			b.writeGone(p.gone)
		}
	}
	if left == 0 {
		m.next = now
	}
}

// Seconds is the first whole second of Unix time that is not before t.
func Seconds(t time.Time) uint32 {
	s := t.Unix()
	if t.Nanosecond() > 0 {
		s++
	}
	return uint32(min(max(s, 0), math.MaxUint32))
}

// KeyOf is a hash of an id. Two ids of one hash are taken for one: with a
// million in memory that happens to one command in 10 trillion, which is then
// set aside and not lost, since its content differs.
func KeyOf(id muster.CommandID) uint64 {
	sum := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(sum[:])
}

// Content is a hash of what a caller asks for with a command, never zero. Its
// id, its node and its times are no part of it: who sends again under the same
// id, later, asks for the same.
func Content(c muster.Command, caller string) uint64 {
	h := sha256.New()
	for _, s := range []string{
		caller, string(c.Kind), string(c.Method), string(canonical(c.Input)),
		strconv.FormatInt(c.TimeoutMS, 10), strconv.Itoa(c.Retries), strconv.FormatBool(c.NoSeq), strconv.FormatBool(c.Idempotent),
	} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	return max(binary.BigEndian.Uint64(h.Sum(nil)), 1)
}

// canonical writes JSON in one way, whatever its spaces and the order of its
// keys are. What is no JSON stays as it is.
func canonical(in json.RawMessage) []byte {
	if len(in) == 0 {
		return []byte("{}")
	}
	dec := json.NewDecoder(bytes.NewReader(in))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return in
	}
	out, err := json.Marshal(v)
	if err != nil {
		return in
	}
	return out
}

// A fifo is a queue in pieces, so that it grows without copies and gives back
// what it does not need.
type fifo struct {
	pieces [][]item
	first  int // in the first piece
	n      int
}

type item struct {
	seq, key         uint64
	issued, deadline uint32
}

func (f *fifo) push(x item) {
	last := len(f.pieces) - 1
	if last < 0 || len(f.pieces[last]) == cap(f.pieces[last]) {
		f.pieces = append(f.pieces, make([]item, 0, min(max(f.n, 4), 4096)))
		last++
	}
	f.pieces[last] = append(f.pieces[last], x)
	f.n++
}

func (f *fifo) head() item { return f.pieces[0][f.first] }

func (f *fifo) pop() item {
	x := f.head()
	f.first++
	f.n--
	if f.first == len(f.pieces[0]) {
		f.pieces, f.first = f.pieces[1:], 0
	}
	return x
}
