package order

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew")

func ptr[T any](v T) *T { return &v }

func count8(from byte) (b [8]byte) {
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

// An example is a frame with its name in the golden file.
type example struct {
	name  string
	frame Frame
}

// examples has each kind of frame, with all optional parts and without.
func examples(t testing.TB) []example {
	t.Helper()
	operator, orderKey := operatorKeys[0], operatorKeys[1]
	var order OrderID
	for i := range order {
		order[i] = 0x80 + byte(i)
	}
	sign := func(s Signed, key ed25519.PrivateKey, query []byte) *Wave {
		s.Cluster, s.Order, s.IssuedAt = "muster", order, 1893456000000
		m, err := Sign(s, key, query)
		if err != nil {
			t.Fatal(err)
		}
		m.Budget, m.Hops = 2880, 1
		return &m
	}
	query, err := EncodeQuery("node.status", []byte(`{"full":true}`))
	if err != nil {
		t.Fatal(err)
	}
	hint, err := SignHint(Hint{IssuedAt: 1893456000000, URLs: []string{"tls://b.example:4222"}}, "muster", operator)
	if err != nil {
		t.Fatal(err)
	}
	member := Member{ID: count8(0x10), Boot: count8(0x20), Code: OK}
	to := func(b Body) Frame {
		return Frame{Src: count8(0x10), SrcBoot: count8(0x20), Counter: 7, Dst: count8(0x30), DstBoot: count8(0x40), Body: b}
	}
	wanted := func(m *Wave, of ...NodeID) *Wave {
		m.Want = of
		return m
	}
	later := func(seq uint32, kind Kind) *Wave { return sign(Signed{Seq: seq, Kind: kind}, orderKey, nil) }
	all := []example{
		{"hello, idle", Frame{Src: count8(0), SrcBoot: count8(0x20), Counter: 1, Body: &Hello{ID: [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, TCPPort: 6776, Name: "a.example"}}},
		{"hello, order", Frame{Src: count8(0), SrcBoot: count8(0x20), Counter: 300, Body: &Hello{ID: [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, State: Ordered, Order: &order,
			TCPPort: 6776, Neighbours: 5, View: count8(0x50), Name: "a.example", BrokerHint: hint}}},
		{"chal, ask", Frame{Src: count8(0x10), SrcBoot: count8(0x20), Counter: 2, Dst: count8(0x30), Body: &Chal{Ask: ptr(count8(0x60))}}},
		{"chal, answer and ask", to(&Chal{Ask: ptr(count8(0x70)), Answer: ptr(count8(0x60))})},
		{"chal, answer of a caller", to(&Chal{Role: RoleCaller, Answer: ptr(count8(0x70))})},
		{"wave, CALL", to(sign(Signed{Kind: KindCall, Hold: 7000, Lease: 60000, Scope: "role=web", Operator: OperatorID(operator.Public().(ed25519.PublicKey)),
			Key: [32]byte(orderKey.Public().(ed25519.PublicKey)), Flags: FlagBreakGlass}, operator, nil))},
		{"wave, ORDER", to(later(1, KindOrder))},
		{"wave, QUERY", to(sign(Signed{Seq: 2, Kind: KindQuery, Selector: "os=linux"}, orderKey, query))},
		{"wave, QUERY repeated for one", to(wanted(sign(Signed{Seq: 2, Kind: KindQuery, Selector: "os=linux", Repeat: 1}, orderKey, query), member.ID))},
		{"wave, RENEW", to(later(3, KindRenew))},
		{"wave, RELEASE", to(later(4, KindRelease))},
		{"wave, CALL repeated", to(sign(Signed{Kind: KindCall, Hold: 7000, Lease: 60000, Scope: "role=web", Operator: OperatorID(operator.Public().(ed25519.PublicKey)),
			Key: [32]byte(orderKey.Public().(ed25519.PublicKey)), Repeat: 2}, operator, nil))},
		{"ack of a wave", to(&Ack{Order: order, Seq: 2, Of: TypeWave})},
		{"ack of a part", to(&Ack{Order: order, Seq: 2, Of: TypePart, Part: count8(0x10)})},
		{"echo", to(&Echo{Order: order, Seq: 2, Members: []Member{member}, Missing: []NodeID{}})},
		{"echo, conflict and partial", to(&Echo{Order: order, Flags: EchoConflict | EchoPartial, Rival: ptr(OrderID{1, 2}), Members: []Member{{ID: member.ID, Boot: member.Boot, Code: Busy}}, Missing: []NodeID{count8(0x90)}})},
		{"dup", to(&Dup{Order: order, Seq: 2})},
		{"fack", to(&Fack{Order: order, Seq: 2, Conflict: true})},
		{"part", to(&Part{Order: order, Seq: 2, From: member, Data: []byte("up")})},
	}
	return all
}

// TestVectors holds the encoding to testdata/frames.txt, from which another
// implementation can be tested. The signatures in it are real.
func TestVectors(t *testing.T) {
	var got strings.Builder
	fmt.Fprintf(&got, "operator key: %x\norder key: %x\n", operators()[0], operators()[1])
	for _, e := range examples(t) {
		data, err := Encode(e.frame)
		if err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		fmt.Fprintf(&got, "%s: %x\n", e.name, data)
		if h, ok := e.frame.Body.(*Hello); ok && h.BrokerHint != nil {
			hint, err := OpenHint(h.BrokerHint, "muster", operators())
			if err != nil {
				t.Errorf("%s: its hint: %v", e.name, err)
			}
			fmt.Fprintf(&got, "the hint in it, issued at %d for %s, signed: %x\n", hint.IssuedAt, hint, hint.signed("muster"))
		}
		back, err := Decode(data)
		if err != nil || !reflect.DeepEqual(back, e.frame) {
			t.Errorf("%s: decoded as %+v, %v; want %+v", e.name, back.Body, err, e.frame.Body)
		}
		if w, ok := e.frame.Body.(*Wave); ok {
			key := operators()[1]
			if w.Kind == KindCall {
				key = operators()[0]
			}
			if _, err := w.Open(); err != nil || !w.Verify(key) {
				t.Errorf("%s: opened with %v, verified %v", e.name, err, w.Verify(key))
			}
		}
	}
	path := filepath.Join("testdata", "frames.txt")
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the encoding has changed; got\n%s", got.String())
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := Encode(examples(t)[16].frame) // a DUP: the shortest
	if err != nil {
		t.Fatal(err)
	}
	text := hex.EncodeToString(good)
	replace := func(old, new string) string {
		if strings.Count(text, old) != 1 {
			t.Fatalf("%s is not in %s once", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	for name, data := range map[string]string{
		"nothing":                        "",
		"a number":                       "01",
		"an array cut short":             text[:len(text)-2],
		"something behind it":            text + "00",
		"an array of 8":                  "88" + text[2:] + "00",
		"an array of indefinite length":  "9f" + text[2:] + "ff",
		"a tag":                          "c1" + text,
		"a type as a longer number":      replace("8705", "871805"),
		"an unknown type":                replace("8705", "870a"),
		"a fragment":                     replace("8705", "8708"),
		"the body of another type":       replace("8705", "8703"),
		"an id of 7 bytes":               replace("481011121314151617", "4710111213141516"),
		"an id of 9 bytes":               replace("481011121314151617", "49101112131415161718"),
		"an id as text":                  replace("481011121314151617", "681011121314151617"),
		"a nil id":                       replace("481011121314151617", "f6"),
		"a negative counter":             replace("07", "26"),
		"a counter as a floating number": replace("07", "f94700"),
		"a sequence beyond 32 bits":      text[:len(text)-2] + "1b0000000100000000",
		"a map for a body":               text[:strings.Index(text, "825080")] + "a0",
	} {
		raw, err := hex.DecodeString(data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if f, err := Decode(raw); err == nil {
			t.Errorf("%s: accepted as %+v", name, f)
		}
	}
	if _, err := Decode(good); err != nil {
		t.Errorf("the frame itself: %v", err)
	}
}

func TestEncodeLimits(t *testing.T) {
	order := OrderID{1}
	for name, c := range map[string]struct {
		body Body
		ok   bool
	}{
		"most members":            {&Echo{Order: order, Members: make([]Member, MaxMembers), Missing: make([]NodeID, MaxMissing)}, true},
		"too many members":        {&Echo{Order: order, Members: make([]Member, MaxMembers+1)}, false},
		"too many missing":        {&Echo{Order: order, Missing: make([]NodeID, MaxMissing+1)}, false},
		"most data":               {&Part{Order: order, Data: make([]byte, MaxResult)}, true},
		"too much data":           {&Part{Order: order, Data: make([]byte, MaxResult+1)}, false},
		"longest name":            {&Hello{Name: strings.Repeat("n", MaxName)}, true},
		"too long a name":         {&Hello{Name: strings.Repeat("n", MaxName+1)}, false},
		"a query without a body":  {&Wave{Kind: KindQuery}, false},
		"a body without a query":  {&Wave{Kind: KindRenew, Query: []byte{1}}, false},
		"an unknown kind":         {&Wave{Kind: KindRelease + 1}, false},
		"an empty challenge":      {&Chal{}, false},
		"an ack of an ack":        {&Ack{Of: TypeAck}, false},
		"an ack of a wave's part": {&Ack{Of: TypeWave, Part: NodeID{1}}, false},
	} {
		data, err := Encode(Frame{Body: c.body})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if _, err := Decode(data); err != nil {
				t.Errorf("%s: encoded, but not decoded: %v", name, err)
			}
		}
	}
}

// TestOpenRefuses: a signed part counts for its own wave and query only.
func TestOpenRefuses(t *testing.T) {
	all := map[string]*Wave{}
	for _, e := range examples(t) {
		if w, ok := e.frame.Body.(*Wave); ok {
			all[e.name] = w
		}
	}
	call, query := all["wave, CALL"], all["wave, QUERY"]
	for name, change := range map[string]func() Wave{
		"another order":           func() Wave { w := *query; w.Order[0]++; return w },
		"another sequence":        func() Wave { w := *query; w.Seq++; return w },
		"another repetition":      func() Wave { w := *query; w.Seq += firstRepeat; return w },
		"no repetition":           func() Wave { w := *all["wave, QUERY repeated for one"]; w.Seq -= firstRepeat; return w },
		"another kind":            func() Wave { w := *all["wave, RENEW"]; w.Kind = KindRelease; return w },
		"another query":           func() Wave { w := *query; w.Query = append(bytes.Clone(w.Query), 0); return w },
		"a call's part elsewhere": func() Wave { w := *call; w.Kind = KindOrder; return w },
		"something behind":        func() Wave { w := *call; w.Signed = append(bytes.Clone(w.Signed), 0); return w },
		"another domain": func() Wave {
			w := *call
			w.Signed = bytes.Replace(w.Signed, []byte("/op/"), []byte("/xx/"), 1)
			return w
		},
	} {
		w := change()
		if _, err := w.Open(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	long := Signed{Kind: KindCall, Lease: uint32(MaxLease.Milliseconds()) + 1}
	m, err := Sign(long, operatorKeys[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Open(); err == nil {
		t.Error("a lease that is too long: accepted")
	}
}

// TestWindow compares with a set of all counters.
func TestWindow(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var w window
		seen := map[uint64]bool{}
		high := uint64(0)
		for range 5000 {
			c := high + uint64(rng.IntN(40))
			switch rng.IntN(20) {
			case 0:
				c = high + uint64(rng.IntN(3000))
			case 1, 2, 3, 4, 5, 6, 7, 8, 9:
				c = high - min(high, uint64(rng.IntN(1200)))
			}
			want := c > 0 && !seen[c] && c+windowSize > high
			if got := w.take(c); got != want {
				t.Fatalf("take(%d) with %d as the highest: %v, want %v", c, high, got, want)
			}
			seen[c] = seen[c] || want
			high = max(high, c)
		}
	}
}
