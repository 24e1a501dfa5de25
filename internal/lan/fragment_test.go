package lan

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"testing/iotest"
	"time"

	"github.com/musterfleet/muster/internal/seal"
)

var (
	peer  = netip.MustParseAddrPort("192.0.2.1:6776")
	begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

func pieces(t testing.TB, frame []byte, message uint64) [][]byte {
	t.Helper()
	var all [][]byte
	if err := split(frame, message, func(f []byte) { all = append(all, bytes.Clone(f)) }); err != nil {
		t.Fatal(err)
	}
	return all
}

func (a *assembler) empty() bool { return len(a.messages) == 0 && len(a.perPeer) == 0 && a.bytes == 0 }

func TestFragmentsInAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	a := newAssembler()
	for n := MaxDatagram + 1; n <= MaxFrame; n += 977 {
		frame := newFrame(n, byte(n))
		all := pieces(t, frame, uint64(n)<<32)
		for _, p := range all {
			if len(p) > MaxDatagram || !isFragment(p) {
				t.Fatalf("a fragment of %d bytes", len(p))
			}
		}
		all = append(all, all[0], all[len(all)-1]) // twice
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		var whole []byte
		for _, p := range all {
			got, err := a.add(peer, p, begin)
			if err != nil {
				t.Fatal(err)
			}
			if got != nil {
				whole = got
			}
		}
		if !bytes.Equal(whole, frame) {
			t.Fatalf("%d bytes did not come whole", n)
		}
		a.expire(begin.Add(fragmentLife)) // what a repeated fragment began
		if !a.empty() {
			t.Fatalf("something is held after all is done: %+v", a)
		}
	}
	if pieces := len(pieces(t, newFrame(MaxFrame, 1), 1)); pieces > maxFragments {
		t.Errorf("the largest frame makes %d fragments", pieces)
	}
}

func TestSplitRefuses(t *testing.T) {
	for name, frame := range map[string][]byte{
		"small": newFrame(100, 1), "large": newFrame(maxFragments*fragmentSize+1, 1),
		"no frame": make([]byte, 5000), "ids are cut": append([]byte{arrayOfSeven, 2, 0x48}, make([]byte, 5)...),
		"long ids": append([]byte{arrayOfSeven, 2}, bytes.Repeat([]byte{0x4a, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 500)...),
	} {
		if err := split(frame, 1, func([]byte) { t.Errorf("%s: a fragment", name) }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFragmentsThatDoNotFit(t *testing.T) {
	frame := newFrame(3000, 1)
	good := pieces(t, frame, 7)
	a := newAssembler()
	if _, err := a.add(peer, good[0], begin); err != nil {
		t.Fatal(err)
	}
	other := newFrame(3000, 2) // has another counter
	for name, p := range map[string][]byte{
		"other ids":   pieces(t, other, 7)[1],
		"other count": pieces(t, newFrame(5000, 1), 7)[1],
		"cut":         good[1][:len(good[1])-1],
		"a byte more": append(bytes.Clone(good[1]), 0),
		"only a head": {arrayOfSeven, Fragment},
		"empty data":  with(t, frame, fragment{Message: 8, Index: 0, Count: 2}),
		"long data":   with(t, frame, fragment{Message: 8, Index: 0, Count: 2, Data: make([]byte, MaxDatagram+1)}),
		"one of one":  with(t, frame, fragment{Message: 8, Index: 0, Count: 1, Data: []byte{1}}),
		"65 of them":  with(t, frame, fragment{Message: 8, Index: 0, Count: 65, Data: []byte{1}}),
		"index":       with(t, frame, fragment{Message: 8, Index: 2, Count: 2, Data: []byte{1}}),
	} {
		if whole, err := a.add(peer, p, begin); err == nil || whole != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// They did not harm the good one.
	_, _ = a.add(peer, good[1], begin)
	if whole, err := a.add(peer, good[2], begin); err != nil || !bytes.Equal(whole, frame) {
		t.Errorf("%v", err)
	}
	// What the pieces make has to be a frame with their ids, and no fragment.
	for name, whole := range map[string][]byte{"no frame": make([]byte, 2000), "not its ids": newFrame(2000, 2), "fragment": with(t, frame, fragment{Message: 9, Index: 0, Count: 2, Data: make([]byte, 1100)})} {
		_, _ = a.add(peer, with(t, frame, fragment{Message: 10, Index: 0, Count: 2, Data: whole[:1000]}), begin)
		if got, err := a.add(peer, with(t, frame, fragment{Message: 10, Index: 1, Count: 2, Data: whole[1000:]}), begin); err == nil || got != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if !a.empty() {
		t.Errorf("%+v", a)
	}
}

// with makes a fragment of a frame that says what split would not.
func with(t testing.TB, frame []byte, f fragment) []byte {
	t.Helper()
	head, _, err := ids(frame)
	if err != nil {
		t.Fatal(err)
	}
	return f.append(append([]byte{arrayOfSeven, Fragment}, head...))
}

func TestFragmentsLiveFiveSeconds(t *testing.T) {
	frame := newFrame(2000, 1)
	all := pieces(t, frame, 1)
	a := newAssembler()
	_, _ = a.add(peer, all[0], begin)
	if n := a.expire(begin.Add(fragmentLife - 1)); n != 0 {
		t.Error("forgotten too early")
	}
	// A late one begins anew, even if nobody called expire.
	if whole, _ := a.add(peer, all[1], begin.Add(fragmentLife)); whole != nil {
		t.Error("put together with one that is too old")
	}
	if n := a.expire(begin.Add(2 * fragmentLife)); n != 1 || !a.empty() {
		t.Errorf("%d forgotten, left %+v", n, a)
	}
}

// TestFragmentBounds fills an assembler from one address, which leaves room for
// others, and then from many.
func TestFragmentBounds(t *testing.T) {
	a := newAssembler()
	fill := func(from netip.AddrPort) (accepted int) {
		for message := range uint64(100) {
			for _, p := range pieces(t, newFrame(60_000, 1), message)[1:] {
				if _, err := a.add(from, p, begin); err == nil {
					accepted++
				}
			}
		}
		return accepted
	}
	fill(peer)
	if u := a.perPeer[peer]; u.messages > maxMessages || u.bytes > maxMessageBytes || a.bytes != u.bytes {
		t.Errorf("%+v", u)
	}
	other := netip.MustParseAddrPort("192.0.2.2:6776")
	frame := newFrame(3000, 1)
	var whole []byte
	for _, p := range pieces(t, frame, 1) {
		whole, _ = a.add(other, p, begin)
	}
	if !bytes.Equal(whole, frame) {
		t.Error("another neighbour has no room")
	}
	for port := range uint16(8) {
		fill(netip.AddrPortFrom(peer.Addr(), port))
	}
	if a.bytes > maxAssemblyBytes {
		t.Errorf("%d bytes are held", a.bytes)
	}
	a.expire(begin.Add(fragmentLife))
	if !a.empty() || fill(peer) == 0 {
		t.Error("it does not recover")
	}
	// Small ones do not evade the bound by their number.
	a = newAssembler()
	for message := range uint64(100) {
		_, _ = a.add(peer, with(t, frame, fragment{Message: message, Index: 0, Count: 2, Data: []byte{1}}), begin)
	}
	if a.perPeer[peer].messages != maxMessages {
		t.Errorf("%+v", a.perPeer[peer])
	}
}

// FuzzFragments adds what was invented, cut into pieces by its first byte, and
// looks whether the account of memory is right.
func FuzzFragments(f *testing.F) {
	for _, p := range pieces(f, newFrame(1500, 1), 1) {
		f.Add(append([]byte{0}, p...))
	}
	f.Add([]byte{5, arrayOfSeven, Fragment, 1, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		a, size := newAssembler(), int(data[0])*8
		if size == 0 {
			size = len(data)
		}
		now := begin
		for rest := data[1:]; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			p := rest[:min(size, len(rest))]
			now = now.Add(time.Second)
			whole, err := a.add(peer, p, now)
			if err == nil && whole != nil && len(whole) > MaxFrame {
				t.Fatal("larger than a frame may be")
			}
			_, _ = a.add(netip.AddrPortFrom(peer.Addr(), 1), p, now)
		}
		if a.bytes < 0 || a.bytes > maxAssemblyBytes {
			t.Fatalf("%d bytes", a.bytes)
		}
		a.expire(now.Add(fragmentLife))
		if !a.empty() {
			t.Fatalf("left: %+v", a)
		}
	})
}

// FuzzSplit puts together what it cut.
func FuzzSplit(f *testing.F) {
	f.Add(newFrame(1500, 1))
	f.Add(newFrame(9000, 1))
	f.Fuzz(func(t *testing.T, frame []byte) {
		a := newAssembler()
		var whole []byte
		err := split(frame, 1, func(p []byte) {
			got, err := a.add(peer, p, begin)
			if err != nil && !isFragment(frame) {
				t.Fatal(err)
			}
			whole = got
		})
		if err == nil && !isFragment(frame) && !bytes.Equal(whole, frame) {
			t.Fatal("not the same")
		}
	})
}

// FuzzReadEnvelope reads a stream in one piece and byte by byte.
func FuzzReadEnvelope(f *testing.F) {
	box := newBox(f, "lab")
	one, _ := box.Seal(nil, newFrame(80, 1))
	f.Add(append(one, one...))
	f.Add([]byte{1, 0xff})
	f.Add([]byte{0, 0xff})
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole := bufio.NewReaderSize(bytes.NewReader(stream), 2048)
		slow := bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(stream)), 2048)
		in, again := make([]byte, seal.MaxEnvelope), make([]byte, seal.MaxEnvelope)
		for at := 0; ; {
			got, err := readEnvelope(whole, in)
			same, err2 := readEnvelope(slow, again)
			if (err == nil) != (err2 == nil) {
				t.Fatalf("%v, byte by byte %v", err, err2)
			}
			if err != nil {
				return
			}
			if !bytes.Equal(got, stream[at:at+len(got)]) || !bytes.Equal(got, same) {
				t.Fatal("not what was in the stream")
			}
			at += len(got)
		}
	})
}

var update = flag.Bool("update", false, "write testdata/fragments.json")

// TestFragmentVector compares with what another implementation can check itself by.
func TestFragmentVector(t *testing.T) {
	const file = "testdata/fragments.json"
	type vector struct {
		Comment   string   `json:"comment"`
		Message   uint64   `json:"message"`
		Frame     string   `json:"frame"`
		Fragments []string `json:"fragments"`
	}
	frame := newFrame(MaxDatagram+1, 0xab)
	made := vector{Comment: "a frame and the fragments that carry it, in hexadecimal, not sealed", Message: 0x0102030405060708,
		Frame: hex.EncodeToString(frame)}
	for _, p := range pieces(t, frame, made.Message) {
		made.Fragments = append(made.Fragments, hex.EncodeToString(p))
	}
	if *update {
		data, err := json.MarshalIndent(made, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var stored vector
	if err := json.Unmarshal(data, &stored); err != nil || !reflect.DeepEqual(stored, made) {
		t.Errorf("the format changed: agents of other versions cannot read it (%v)", err)
	}
}
