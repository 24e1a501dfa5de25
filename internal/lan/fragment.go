package lan

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/cbor"
)

// Fragment is the type of a frame that is a piece of a larger one:
//
//	[Fragment, src8, srcBoot8, counter, dst8, dstBoot8, [message, index, count, bytes]]
//
// What stands between type and body is that of the frame it is a piece of.
const Fragment = 8

// Bounds of fragments. The second and third hold for one source address, the
// fourth for all together.
const (
	maxFragments     = 64
	maxMessages      = 8
	maxMessageBytes  = 128 << 10
	maxAssemblyBytes = 512 << 10
	fragmentLife     = 5 * time.Second
	fragmentOverhead = 128 // bytes of memory that one costs beyond its content
)

const (
	arrayOfSeven = 0x87
	idsInFrame   = 5
	counterInIDs = 2
	maxID        = 9 // bytes of an encoded id or counter
	// fragmentSize is the content of one fragment: the head of the frame, at
	// most 2 + 5 x 9 bytes, and of the body, at most 17, fit into a datagram too.
	fragmentSize = MaxDatagram - 2 - idsInFrame*maxID - 17
)

type fragment struct {
	Message uint64
	Index   uint8
	Count   uint8
	Data    []byte
}

func (f *fragment) append(b []byte) []byte {
	b = cbor.AppendUint(cbor.AppendArray(b, 4), f.Message)
	b = cbor.AppendUint(cbor.AppendUint(b, uint64(f.Index)), uint64(f.Count))
	return cbor.AppendBytes(b, f.Data)
}

// decodeFragment reads the body of a fragment. The content is a copy.
func decodeFragment(body []byte) (f fragment, ok bool) {
	r := cbor.NewReader(body)
	r.Array(4)
	f.Message = r.Uint()
	f.Index, f.Count = uint8(r.UintUpTo(maxFragments)), uint8(r.UintUpTo(maxFragments))
	f.Data = bytes.Clone(r.Bytes(MaxDatagram))
	return f, r.End()
}

var errBadFragment = muster.Errorf(muster.Invalid, "not a fragment that fits")

func isFragment(frame []byte) bool {
	return len(frame) > 2 && frame[0] == arrayOfSeven && frame[1] == Fragment
}

// ids returns the encoded ids of a frame, and its encoded body.
func ids(frame []byte) (ids, body []byte, err error) {
	if len(frame) < 2 || frame[0] != arrayOfSeven || frame[1] > 23 {
		return nil, nil, errBadFragment
	}
	r := cbor.NewReader(frame[2:])
	for i := range idsInFrame {
		if i == counterInIDs {
			r.Uint()
		} else {
			r.Bytes(maxID - 1)
		}
	}
	rest := r.Rest()
	if !r.OK() {
		return nil, nil, errBadFragment
	}
	return frame[2 : len(frame)-len(rest)], rest, nil
}

// split cuts a frame into fragments, and calls f with each. The slice that f gets
// is used again.
func split(frame []byte, message uint64, f func([]byte)) error {
	count := (len(frame) + fragmentSize - 1) / fragmentSize
	if count < 2 || count > maxFragments {
		return errBadFragment
	}
	head, _, err := ids(frame)
	if err != nil {
		return err
	}
	out := make([]byte, 0, MaxDatagram)
	for i := range count {
		piece := fragment{Message: message, Index: uint8(i), Count: uint8(count),
			Data: frame[i*fragmentSize : min(len(frame), (i+1)*fragmentSize)]}
		out = append(append(out[:0], arrayOfSeven, Fragment), head...)
		out = piece.append(out)
		f(out)
	}
	return nil
}

// An assembler puts fragments together. It is not safe for concurrent use.
type assembler struct {
	messages map[messageKey]*message
	perPeer  map[netip.AddrPort]usage
	bytes    int // that all messages hold
}

type messageKey struct {
	from    netip.AddrPort
	message uint64
}

type usage struct{ messages, bytes int }

type message struct {
	ids     string // of all its fragments
	pieces  [][]byte
	missing int
	bytes   int // held, with overhead
	size    int // of content
	expires time.Time
}

func newAssembler() *assembler {
	return &assembler{messages: map[messageKey]*message{}, perPeer: map[netip.AddrPort]usage{}}
}

// add takes a fragment, and returns the whole frame when it was the last that was
// missing. A fragment that was there already changes nothing.
func (a *assembler) add(from netip.AddrPort, frame []byte, now time.Time) ([]byte, error) {
	head, body, err := ids(frame)
	if err != nil {
		return nil, err
	}
	f, ok := decodeFragment(body)
	if !ok || f.Count < 2 || f.Count > maxFragments || f.Index >= f.Count || len(f.Data) == 0 || len(f.Data) > MaxDatagram {
		return nil, errBadFragment
	}
	key := messageKey{from, f.Message}
	m := a.messages[key]
	if m != nil && !now.Before(m.expires) {
		a.forget(key)
		m = nil
	}
	if m != nil && (m.ids != string(head) || len(m.pieces) != int(f.Count)) {
		return nil, errBadFragment
	}
	if m != nil && m.pieces[f.Index] != nil {
		return nil, nil
	}
	if m = a.hold(key, m, string(head), f, now); m == nil {
		return nil, errBadFragment
	}
	if m.missing > 0 {
		return nil, nil
	}
	a.forget(key)
	return m.join()
}

// hold keeps a fragment, in a new message if there is none, unless that would
// exceed a bound.
func (a *assembler) hold(key messageKey, m *message, head string, f fragment, now time.Time) *message {
	cost := len(f.Data) + fragmentOverhead
	used := a.perPeer[key.from]
	if m == nil {
		cost += int(f.Count) * 24 // the slices
		used.messages++
	}
	used.bytes += cost
	if used.messages > maxMessages || used.bytes > maxMessageBytes || a.bytes+cost > maxAssemblyBytes {
		return nil
	}
	if m == nil {
		m = &message{ids: head, pieces: make([][]byte, f.Count), missing: int(f.Count), expires: now.Add(fragmentLife)}
		a.messages[key] = m
	}
	a.perPeer[key.from] = used
	a.bytes += cost
	m.pieces[f.Index] = f.Data // decoding made a copy
	m.missing--
	m.bytes += cost
	m.size += len(f.Data)
	return m
}

// forget releases what a message holds.
func (a *assembler) forget(key messageKey) {
	m := a.messages[key]
	delete(a.messages, key)
	a.bytes -= m.bytes
	used := a.perPeer[key.from]
	used.messages--
	used.bytes -= m.bytes
	a.perPeer[key.from] = used
	if used.messages == 0 {
		delete(a.perPeer, key.from)
	}
}

// expire forgets the messages whose time is over, and returns how many.
func (a *assembler) expire(now time.Time) int {
	n := 0
	for key, m := range a.messages {
		if !now.Before(m.expires) {
			a.forget(key)
			n++
		}
	}
	return n
}

// join returns the frame that the pieces make, which must have their ids and
// must not be a fragment again.
func (m *message) join() ([]byte, error) {
	if m.size > MaxFrame {
		return nil, errBadFragment
	}
	whole := make([]byte, 0, m.size)
	for _, p := range m.pieces {
		whole = append(whole, p...)
	}
	head, _, err := ids(whole)
	if err != nil || string(head) != m.ids || isFragment(whole) {
		return nil, errBadFragment
	}
	return whole, nil
}
