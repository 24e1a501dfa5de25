package order

import (
	"bytes"
	"crypto/ed25519"
	"math"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/cbor"
)

// Encode returns the deterministic encoding of a frame. It fails only for a
// frame that is beyond the limits.
func Encode(f Frame) ([]byte, error) {
	if f.Body == nil || !f.Body.valid() {
		return nil, muster.Errorf(muster.Internal, "a frame is beyond the protocol's limits")
	}
	b := cbor.AppendUint(cbor.AppendArray(nil, 7), uint64(f.Body.Type()))
	b = cbor.AppendBytes(cbor.AppendBytes(b, f.Src[:]), f.SrcBoot[:])
	b = cbor.AppendUint(b, f.Counter)
	b = cbor.AppendBytes(cbor.AppendBytes(b, f.Dst[:]), f.DstBoot[:])
	b = f.Body.append(b)
	if len(b) > MaxFrame {
		return nil, muster.Errorf(muster.Internal, "a frame has %d bytes; %d are possible", len(b), MaxFrame)
	}
	return b, nil
}

var errFrame = muster.Errorf(muster.Invalid, "this is not a frame of the order protocol")

// Decode reads a frame. It accepts exactly what Encode makes: a frame has one
// encoding, so that what is not it is refused, whatever else the bytes may mean.
// The frame shares no memory with data.
func Decode(data []byte) (Frame, error) {
	if len(data) > MaxFrame {
		return Frame{}, errFrame
	}
	r := cbor.NewReader(bytes.Clone(data))
	r.Array(7)
	t := Type(r.UintUpTo(math.MaxUint8))
	var f Frame
	r.Fixed(f.Src[:])
	r.Fixed(f.SrcBoot[:])
	f.Counter = r.Uint()
	r.Fixed(f.Dst[:])
	r.Fixed(f.DstBoot[:])
	f.Body = readBody(r, t)
	if !r.End() || !f.Body.valid() {
		return Frame{}, errFrame
	}
	return f, nil
}

// readBody reads a body of a type. One that is not known fails the reader.
func readBody(r *cbor.Reader, t Type) Body {
	switch t {
	case TypeHello:
		return readHello(r)
	case TypeWave:
		return readWave(r)
	case TypeAck:
		return readAck(r)
	case TypeEcho:
		return readEcho(r)
	case TypeDup:
		d := new(Dup)
		r.Array(2)
		d.Order, d.Seq = readOrderID(r), readUint32(r)
		return d
	case TypeFack:
		f := new(Fack)
		r.Array(3)
		f.Order, f.Seq, f.Conflict = readOrderID(r), readUint32(r), r.Bool()
		return f
	case TypePart:
		p := new(Part)
		r.Array(4)
		p.Order, p.Seq, p.From, p.Data = readOrderID(r), readUint32(r), readMember(r), r.Bytes(MaxResult)
		return p
	case TypeChal:
		return readChal(r)
	}
	r.Fail()
	return nil
}

func readUint32(r *cbor.Reader) uint32 { return uint32(r.UintUpTo(math.MaxUint32)) }

func readUint8(r *cbor.Reader) uint8 { return uint8(r.UintUpTo(math.MaxUint8)) }

func readOrderID(r *cbor.Reader) (id OrderID) {
	r.Fixed(id[:])
	return id
}

func readNodeID(r *cbor.Reader) (id NodeID) {
	r.Fixed(id[:])
	return id
}

// appendOptionalID appends an id, or null.
func appendOptionalID(b []byte, id *OrderID) []byte {
	if id == nil {
		return cbor.AppendNull(b)
	}
	return cbor.AppendBytes(b, id[:])
}

func readOptionalID(r *cbor.Reader) *OrderID {
	if r.Null() {
		return nil
	}
	id := readOrderID(r)
	return &id
}

func (h *Hello) append(b []byte) []byte {
	b = cbor.AppendUint(cbor.AppendArray(b, 9), uint64(h.Protocol))
	b = cbor.AppendUint(cbor.AppendBytes(b, h.ID[:]), uint64(h.State))
	b = appendOptionalID(b, h.Order)
	b = cbor.AppendUint(cbor.AppendUint(b, uint64(h.TCPPort)), uint64(h.Neighbours))
	b = cbor.AppendText(cbor.AppendBytes(b, h.View[:]), h.Name)
	if len(h.BrokerHint) == 0 {
		return cbor.AppendNull(b)
	}
	return cbor.AppendBytes(b, h.BrokerHint)
}

func readHello(r *cbor.Reader) Body {
	h := new(Hello)
	r.Array(9)
	h.Protocol = readUint8(r)
	r.Fixed(h.ID[:])
	h.State = State(readUint8(r))
	h.Order = readOptionalID(r)
	h.TCPPort, h.Neighbours = uint16(r.UintUpTo(math.MaxUint16)), uint16(r.UintUpTo(math.MaxUint16))
	r.Fixed(h.View[:])
	h.Name = r.Text(MaxName)
	if !r.Null() {
		if h.BrokerHint = r.Bytes(MaxHint); len(h.BrokerHint) == 0 {
			r.Fail()
		}
	}
	return h
}

// elements returns how many a WAVE has: the body of a QUERY is one more, and who
// is to answer another one when it is repeated.
func (w *Wave) elements() int {
	switch {
	case w.Kind != KindQuery:
		return 7
	case w.repeated():
		return 9
	}
	return 8
}

func (w *Wave) append(b []byte) []byte {
	n := w.elements()
	b = cbor.AppendBytes(cbor.AppendArray(b, n), w.Order[:])
	b = cbor.AppendUint(cbor.AppendUint(b, uint64(w.Seq)), uint64(w.Kind))
	b = cbor.AppendUint(cbor.AppendUint(b, uint64(w.Budget)), uint64(w.Hops))
	b = cbor.AppendBytes(cbor.AppendBytes(b, w.Signed), w.Sig[:])
	if n > 7 {
		b = cbor.AppendBytes(b, w.Query)
	}
	if n > 8 {
		b = appendNodeIDs(b, w.Want)
	}
	return b
}

func appendNodeIDs(b []byte, all []NodeID) []byte {
	b = cbor.AppendArray(b, len(all))
	for _, id := range all {
		b = cbor.AppendBytes(b, id[:])
	}
	return b
}

func readNodeIDs(r *cbor.Reader) []NodeID {
	all := []NodeID{}
	for range r.ArrayUpTo(MaxMissing) {
		if r.OK() {
			all = append(all, readNodeID(r))
		}
	}
	return all
}

func readWave(r *cbor.Reader) Body {
	w := new(Wave)
	n := r.ArrayUpTo(9)
	w.Order, w.Seq, w.Kind = readOrderID(r), readUint32(r), Kind(readUint8(r))
	w.Budget, w.Hops = readUint32(r), readUint8(r)
	w.Signed = r.Bytes(maxSigned)
	r.Fixed(w.Sig[:])
	if n != w.elements() {
		r.Fail()
	}
	if n > 7 {
		w.Query = r.Bytes(maxBody)
	}
	if n > 8 {
		w.Want = readNodeIDs(r)
	}
	return w
}

func (a *Ack) append(b []byte) []byte {
	b = cbor.AppendBytes(cbor.AppendArray(b, 4), a.Order[:])
	b = cbor.AppendUint(cbor.AppendUint(b, uint64(a.Seq)), uint64(a.Of))
	return cbor.AppendBytes(b, a.Part[:])
}

func readAck(r *cbor.Reader) Body {
	r.Array(4)
	return &Ack{Order: readOrderID(r), Seq: readUint32(r), Of: Type(readUint8(r)), Part: readNodeID(r)}
}

func (m *Member) append(b []byte) []byte {
	b = cbor.AppendBytes(cbor.AppendArray(b, 3), m.ID[:])
	return cbor.AppendUint(cbor.AppendBytes(b, m.Boot[:]), uint64(m.Code))
}

func readMember(r *cbor.Reader) (m Member) {
	r.Array(3)
	r.Fixed(m.ID[:])
	r.Fixed(m.Boot[:])
	m.Code = Code(readUint8(r))
	return m
}

func (e *Echo) append(b []byte) []byte {
	b = cbor.AppendBytes(cbor.AppendArray(b, 6), e.Order[:])
	b = cbor.AppendUint(cbor.AppendUint(b, uint64(e.Seq)), uint64(e.Flags))
	b = appendOptionalID(b, e.Rival)
	b = cbor.AppendArray(b, len(e.Members))
	for i := range e.Members {
		b = e.Members[i].append(b)
	}
	return appendNodeIDs(b, e.Missing)
}

func readEcho(r *cbor.Reader) Body {
	e := &Echo{Members: []Member{}}
	r.Array(6)
	e.Order, e.Seq, e.Flags, e.Rival = readOrderID(r), readUint32(r), readUint8(r), readOptionalID(r)
	for range r.ArrayUpTo(MaxMembers) {
		if r.OK() {
			e.Members = append(e.Members, readMember(r))
		}
	}
	e.Missing = readNodeIDs(r)
	return e
}

func (d *Dup) append(b []byte) []byte {
	return cbor.AppendUint(cbor.AppendBytes(cbor.AppendArray(b, 2), d.Order[:]), uint64(d.Seq))
}

func (f *Fack) append(b []byte) []byte {
	b = cbor.AppendUint(cbor.AppendBytes(cbor.AppendArray(b, 3), f.Order[:]), uint64(f.Seq))
	return cbor.AppendBool(b, f.Conflict)
}

func (p *Part) append(b []byte) []byte {
	b = cbor.AppendUint(cbor.AppendBytes(cbor.AppendArray(b, 4), p.Order[:]), uint64(p.Seq))
	return cbor.AppendBytes(p.From.append(b), p.Data)
}

func (c *Chal) append(b []byte) []byte {
	b = cbor.AppendUint(cbor.AppendArray(b, 3), uint64(c.Role))
	for _, nonce := range []*[8]byte{c.Ask, c.Answer} {
		if nonce == nil {
			b = cbor.AppendNull(b)
		} else {
			b = cbor.AppendBytes(b, nonce[:])
		}
	}
	return b
}

func readChal(r *cbor.Reader) Body {
	c := new(Chal)
	r.Array(3)
	c.Role = Role(readUint8(r))
	for _, nonce := range []**[8]byte{&c.Ask, &c.Answer} {
		if !r.Null() {
			*nonce = new([8]byte)
			r.Fixed((*nonce)[:])
		}
	}
	return c
}

// bytes returns what is signed.
func (s *Signed) bytes() []byte {
	n := 8
	if s.Kind == KindCall {
		n = 12
	}
	if s.Repeat > 0 {
		n++
	}
	b := cbor.AppendText(cbor.AppendText(cbor.AppendArray(nil, n), domain), s.Cluster)
	b = cbor.AppendUint(cbor.AppendBytes(b, s.Order[:]), uint64(s.Seq))
	b = cbor.AppendInt(cbor.AppendUint(b, uint64(s.Kind)), s.IssuedAt)
	if s.Kind != KindCall {
		b = cbor.AppendBytes(cbor.AppendText(b, s.Selector), s.Hash[:])
	} else {
		b = cbor.AppendUint(cbor.AppendUint(b, uint64(s.Hold)), uint64(s.Lease))
		b = cbor.AppendBytes(cbor.AppendText(b, s.Scope), s.Operator[:])
		b = cbor.AppendUint(cbor.AppendBytes(b, s.Key[:]), uint64(s.Flags))
	}
	if s.Repeat > 0 {
		b = cbor.AppendUint(b, uint64(s.Repeat))
	}
	return b
}

// parse reads what is signed, in the form of the wave's kind.
func (w *Wave) parse() (Signed, bool) {
	var s Signed
	r := cbor.NewReader(w.Signed)
	n := r.ArrayUpTo(13)
	if r.Text(len(domain)) != domain {
		r.Fail()
	}
	s.Cluster, s.Order, s.Seq = r.Text(MaxCluster), readOrderID(r), readUint32(r)
	s.Kind, s.IssuedAt = Kind(readUint8(r)), r.Int()
	if w.repeated() {
		n--
	}
	switch {
	case s.Kind != KindCall && n == 8:
		s.Selector = r.Text(MaxSelector)
		r.Fixed(s.Hash[:])
	case s.Kind == KindCall && n == 12:
		s.Hold, s.Lease, s.Scope, s.Operator = readUint32(r), readUint32(r), r.Text(MaxSelector), readNodeID(r)
		r.Fixed(s.Key[:])
		s.Flags = readUint8(r)
	default:
		r.Fail()
	}
	if w.repeated() {
		s.Repeat = readUint8(r)
	}
	return s, r.End()
}

// EncodeQuery returns the body of a QUERY: the method and its arguments, whose
// form is the methods' business.
func EncodeQuery(method string, args []byte) ([]byte, error) {
	switch {
	case method == "" || len(method) > MaxMethod:
		return nil, muster.Errorf(muster.Invalid, "a method has 1 to %d characters", MaxMethod)
	case len(args) > MaxArgs:
		return nil, muster.Errorf(muster.Full, "the arguments have %d bytes; %d are possible", len(args), MaxArgs)
	}
	return cbor.AppendBytes(cbor.AppendText(cbor.AppendArray(nil, 2), method), args), nil
}

// DecodeQuery is the reverse of EncodeQuery.
func DecodeQuery(data []byte) (method string, args []byte, err error) {
	r := cbor.NewReader(data)
	r.Array(2)
	method, args = r.Text(MaxMethod), r.Bytes(MaxArgs)
	if !r.End() || method == "" {
		return "", nil, muster.Errorf(muster.Invalid, "the body of a query is malformed")
	}
	return method, args, nil
}

// A record is what a restarted agent must know: who has it locked, the last query,
// and which CALLs are old. Without a lock the order is zero.
type record struct {
	Order    OrderID
	Key      [ed25519.PublicKeySize]byte
	Operator NodeID
	Lease    int64 // milliseconds
	Until    int64 // Unix milliseconds
	Seq      uint32
	Floor    int64 // Unix milliseconds: the latest time of a CALL that the node has entered
}

const recordVersion = 1

func (x *record) encode() []byte {
	b := cbor.AppendBytes(cbor.AppendUint(cbor.AppendArray(nil, 8), recordVersion), x.Order[:])
	b = cbor.AppendBytes(cbor.AppendBytes(b, x.Key[:]), x.Operator[:])
	return cbor.AppendInt(cbor.AppendUint(cbor.AppendInt(cbor.AppendInt(b, x.Lease), x.Until), uint64(x.Seq)), x.Floor)
}

func decodeRecord(data []byte) (x record, ok bool) {
	r := cbor.NewReader(data)
	r.Array(8)
	if r.UintUpTo(recordVersion) != recordVersion {
		r.Fail()
	}
	r.Fixed(x.Order[:])
	r.Fixed(x.Key[:])
	x.Operator, x.Lease, x.Until, x.Seq, x.Floor = readNodeID(r), r.Int(), r.Int(), readUint32(r), r.Int()
	return x, r.End()
}
