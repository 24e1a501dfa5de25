package order

import (
	"bytes"
	"reflect"
	"slices"
	"testing"
	"time"
)

// FuzzDecode: no bytes make Decode panic, and what it accepts has one encoding.
func FuzzDecode(f *testing.F) {
	for _, e := range examples(f) {
		data, err := Encode(e.frame)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Encode(frame)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%x is decoded, but encoded as %x, %v", data, again, err)
		}
		if w, ok := frame.Body.(*Wave); ok {
			if s, err := w.Open(); err == nil && (s.Order != w.Order || s.number() != w.Seq) {
				t.Fatal("a signed part of another wave was opened")
			}
		}
	})
}

// FuzzReceive sends a locked node frames of somebody who has the cluster's
// secret, and so has proved itself, but no key: they change nothing about the
// lock, run nothing, and what the node remembers stays bounded.
func FuzzReceive(f *testing.F) {
	var all []byte
	for _, e := range examples(f) {
		data, err := Encode(e.frame)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, uint16(10))
		all = append(append(all, byte(len(data)>>8), byte(len(data))), data...)
	}
	f.Add(all, uint16(1000))
	f.Fuzz(func(t *testing.T, data []byte, step uint16) {
		r := newRig(t)
		order := r.lock(60 * time.Second)
		before := r.node.Status(r.now)
		counter := uint64(1000)
		for i := 0; len(data) > 0 && i < 200; i++ {
			var chunk []byte
			chunk, data = cut(data)
			frame, err := Decode(chunk)
			if err != nil {
				continue
			}
			counter++
			r.now = r.now.Add(time.Duration(step) * time.Millisecond)
			if r.now.After(before.Until) {
				break
			}
			attack(r, frame, counter)
			r.mustBe(before, order)
		}
		if len(r.node.peers) > maxPeers || len(r.node.waves) > maxWaves || len(r.node.orders) > maxOrders || r.node.held() > maxHeld {
			t.Fatal("the node remembers too much")
		}
	})
}

// attack delivers a frame as it is, and as the proved attacker would send it.
func attack(r *rig, frame Frame, counter uint64) {
	r.node.Receive(r.now, "attacker", frame)
	frame.Src, frame.SrcBoot, frame.Counter = r.peerID, r.peerBoot, counter
	frame.Dst, frame.DstBoot = r.node.ID(), r.node.Boot()
	r.node.Receive(r.now, "peer", frame)
	if w, ok := frame.Body.(*Wave); ok { // of the order that is in force
		forged := *w
		forged.Order = r.node.lock.order
		frame.Counter += 1 << 20
		frame.Body = &forged
		r.node.Receive(r.now, "peer", frame)
	}
}

func (r *rig) mustBe(before Status, order OrderID) {
	ready := r.node.Ready()
	if got := r.node.Status(r.now); got != before || got.Order != order {
		r.t.Fatalf("the lock changed from %+v to %+v", before, got)
	}
	if ready.Save != nil || len(ready.Executes) > 0 {
		r.t.Fatalf("the attacker made the node do %+v", ready)
	}
	if i := slices.IndexFunc(ready.Sends, func(s Send) bool {
		return s.To == "attacker" && reflect.TypeOf(s.Frame.Body) == reflect.TypeFor[*Echo]()
	}); i >= 0 {
		r.t.Fatal("somebody unproved was answered")
	}
}

// cut takes one frame with its length in front, or all there is.
func cut(data []byte) (chunk, rest []byte) {
	if len(data) > 2 {
		if n := int(data[0])<<8 | int(data[1]); n <= len(data)-2 && n > 0 {
			return data[2 : 2+n], data[2+n:]
		}
	}
	return data, nil
}
