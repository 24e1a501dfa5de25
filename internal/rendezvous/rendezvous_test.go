package rendezvous

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func addresses(all ...string) (list []netip.AddrPort) {
	for _, a := range all {
		list = append(list, netip.MustParseAddrPort(a))
	}
	return list
}

func peer(n byte, at ...string) Peer {
	if len(at) == 0 {
		at = []string{fmt.Sprintf("10.0.0.%d:6776", n)}
	}
	return Peer{ID: ID{n}, At: addresses(at...)}
}

func TestTag(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	tag := NewTag("lab", secret)
	if tag == NewTag("lab2", secret) || tag == NewTag("lab", bytes.Repeat([]byte{8}, 32)) {
		t.Error("two constellations have the same tag")
	}
	// HMAC-SHA256(key = 07 * 32, "muster-rendezvous-v0" 00 "lab"), from another program.
	if got, _ := tag.MarshalText(); string(got) != "1adbde96fa18f7660d3620da0d1126fc" {
		t.Errorf("the tag is %s", got)
	}
}

func TestDialable(t *testing.T) {
	for text, want := range map[string]bool{
		"10.0.0.1:6776": true, "192.0.2.1:1": true, "[2001:db8::1]:6776": true, "[fd00::1]:6776": true,
		"10.0.0.1:0": false, "0.0.0.0:6776": false, "0.1.2.3:6776": false, "[::]:6776": false,
		"127.0.0.1:6776": false, "127.1.2.3:6776": false, "[::1]:6776": false,
		"224.0.247.51:6776": false, "239.1.1.1:6776": false, "255.255.255.255:6776": false, "240.0.0.1:6776": false,
		"[ff02::1]:6776": false, "[ff12::6776]:6776": false, "169.254.169.254:80": false, "[fe80::1]:6776": false, "[fe80::1%eth0]:6776": false,
		"[fd00::1%eth0]:6776": false, "[::ffff:10.0.0.1]:6776": false, "[::ffff:127.0.0.1]:6776": false,
	} {
		a := netip.MustParseAddrPort(text)
		if got := Dialable(a, false); got != want {
			t.Errorf("%s: %t", text, got)
		}
		if got := Dialable(a, true); got != (want || a.Addr().IsLoopback() && !a.Addr().Is4In6()) {
			t.Errorf("%s, where loopback is meant: %t", text, got)
		}
	}
	if Dialable(netip.AddrPort{}, true) {
		t.Error("no address is one")
	}
}

// What is written is read; the spelling is the only one.
func TestMessages(t *testing.T) {
	r := Request{Tag: Tag{1, 2}, Peer: peer(3, "10.0.0.3:6776", "[2001:db8::3]:6776")}
	data, err := Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"tag":"01020000000000000000000000000000","id":"0300000000000000","at":["10.0.0.3:6776","[2001:db8::3]:6776"]}`
	if string(data) != want {
		t.Errorf("a request is %s", data)
	}
	if got, err := Decode[Request](data); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, bad := range map[string]string{
		"nothing": "", "null": "null", "a list": "[]", "no fields": "{}",
		"trailing":    want + " ",
		"leading":     " " + want,
		"unknown key": strings.Replace(want, `"id"`, `"x":1,"id"`, 1),
		"repeated":    strings.Replace(want, `"id"`, `"tag":"02","id"`, 1),
		"other case":  strings.Replace(want, `"id"`, `"ID"`, 1),
		"upper hex":   strings.Replace(want, `0102`, `0A02`, 1),
		"short tag":   strings.Replace(want, `0102`, `01`, 1),
		"no address":  `{"tag":"01020000000000000000000000000000","id":"0300000000000000","at":[]}`,
		"five":        strings.Replace(want, `"10.0.0.3:6776"`, `"10.0.0.4:1","10.0.0.4:2","10.0.0.4:3","10.0.0.4:4"`, 1),
		"a name":      strings.Replace(want, `10.0.0.3`, `localhost`, 1),
		"multicast":   strings.Replace(want, `10.0.0.3`, `224.0.0.1`, 1),
		"no port":     strings.Replace(want, `10.0.0.3:6776`, `10.0.0.3`, 1),
		"padded port": strings.Replace(want, `10.0.0.3:6776`, `10.0.0.3:06776`, 1),
	} {
		if got, err := Decode[Request]([]byte(bad)); err == nil {
			t.Errorf("%s is taken for %+v", name, got)
		}
	}
	if _, err := Decode[Answer](bytes.Repeat([]byte(" "), MaxMessage+1)); err == nil {
		t.Error("too long an answer is read")
	}
	full := Answer{Peers: make([]Peer, MaxPeers)}
	for i := range full.Peers {
		long := "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
		full.Peers[i] = peer(byte(i), long, long, long, long)
	}
	if data, err := Encode(full); err != nil || len(data) > MaxMessage {
		t.Errorf("the largest answer has %d bytes: %v", len(data), err)
	}
	full.Peers = append(full.Peers, peer(99))
	if _, err := Encode(full); err == nil {
		t.Error("an answer with too many peers is written")
	}
}

func TestMerge(t *testing.T) {
	self := ID{1}
	known := []Peer{peer(2, "10.9.9.9:1"), peer(3)}
	told := []Peer{peer(1), peer(2), peer(4, "127.0.0.1:6776"), peer(5, "127.0.0.1:6776", "10.0.0.5:6776"), peer(2, "10.8.8.8:1")}
	for name, c := range map[string]struct {
		settled, loopback bool
		want              []Peer
	}{
		"settled":     {true, false, []Peer{peer(2), peer(5)}},
		"not settled": {false, false, []Peer{peer(2), peer(5), peer(3)}},
		"on loopback": {true, true, []Peer{peer(2), peer(4, "127.0.0.1:6776"), peer(5, "127.0.0.1:6776", "10.0.0.5:6776")}},
	} {
		if got := Merge(known, Answer{c.settled, told}, self, c.loopback); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	var many []Peer
	for i := range 40 {
		many = append(many, peer(byte(i+2)))
	}
	if got := Merge(many, Answer{Peers: []Peer{}}, self, false); !reflect.DeepEqual(got, many[:MaxPeers]) {
		t.Errorf("%d are kept", len(got))
	}
	if got := Merge(nil, Answer{Settled: true, Peers: []Peer{}}, self, false); got == nil || len(got) != 0 {
		t.Errorf("of nobody there is %#v", got)
	}
	if !slices.Equal(told[3].At, addresses("127.0.0.1:6776", "10.0.0.5:6776")) {
		t.Error("what was told has changed")
	}
}

func FuzzRequest(f *testing.F) {
	data, err := Encode(Request{Peer: peer(1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"tag":null,"id":"","at":null}`))
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip[Request](t, data) })
}

func FuzzAnswer(f *testing.F) {
	data, err := Encode(Answer{Settled: true, Peers: []Peer{peer(1), peer(2, "[2001:db8::1]:1", "127.0.0.1:2")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"settled":true,"peers":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		roundTrip[Answer](t, data)
		if a, err := Decode[Answer](data); err == nil {
			for _, p := range Merge(nil, a, ID{}, false) {
				if slices.ContainsFunc(p.At, func(at netip.AddrPort) bool { return at.Addr().IsLoopback() }) {
					t.Errorf("%v is kept", p)
				}
			}
		}
	})
}

func FuzzSaved(f *testing.F) {
	data, err := Encode(Saved{Peers: []Peer{peer(1)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip[Saved](t, data) })
}

// roundTrip demands that what is read is within the limits, and written as it was.
func roundTrip[T message](t *testing.T, data []byte) {
	m, err := Decode[T](data)
	if err != nil {
		return
	}
	again, err := Encode(m)
	if err != nil || !bytes.Equal(again, data) || len(data) > MaxMessage {
		t.Errorf("%q is read as %+v and written as %q, %v", data, m, again, err)
	}
}
