package participant

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/order"
)

// heldFake is an Order that answers from memory.
type heldFake struct {
	Held
	h      Holding
	silent []Who
	asked  Query
}

func (f *heldFake) Holding(context.Context) (Holding, error) { return f.h, nil }

func (f *heldFake) Query(_ context.Context, q Query, each func(Answer)) ([]Who, error) {
	f.asked = q
	if q.Method == "none" {
		return nil, muster.Errorf(muster.Invalid, "no such method").WithHint("try another")
	}
	for _, m := range f.h.Members {
		each(Answer{m, []byte("answer of " + m.Name)})
	}
	return f.silent, nil
}

func (f *heldFake) Renew(context.Context) (Holding, []Who, error) { return f.h, f.silent, nil }
func (f *heldFake) Release(context.Context) ([]Who, error)        { return f.silent, nil }

func open(t *testing.T, path string, held Held) *Session {
	t.Helper()
	s, err := ListenSession(path, held)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var served sync.WaitGroup
	served.Go(func() { s.Serve(ctx) })
	t.Cleanup(func() { cancel(); served.Wait() })
	return s
}

// socketFolder returns a folder for a socket, whose path may have no more than some
// hundred bytes, wherever temporary files are.
func socketFolder(t *testing.T) string {
	t.Helper()
	t.Chdir(t.TempDir())
	return "."
}

func TestASessionIsSharedWithOtherCommands(t *testing.T) {
	who := []Who{{ID: order.NodeID{1}, Name: "a"}, {ID: order.NodeID{2}}}
	held := &heldFake{h: Holding{order.OrderID{7}, time.Minute, time.Now().Round(0).UTC(), who, []Who{{ID: order.NodeID{3}, Name: "c", Code: order.Clock}}},
		silent: []Who{{ID: order.NodeID{2}, Code: order.NoAnswer, Until: time.Now().Round(0).UTC()}}}
	path := filepath.Join(socketFolder(t), "sessions", "s.sock")
	if JoinSession(path) != nil {
		t.Fatal("there is a session already")
	}
	s := open(t, path, held)
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	if _, err := ListenSession(path, held); muster.KindOf(err) != muster.Conflict {
		t.Errorf("a second session: %v", err)
	}
	g := JoinSession(path)
	if g == nil {
		t.Fatal("nobody serves")
	}
	if h, err := g.Holding(t.Context()); err != nil || !reflect.DeepEqual(h, held.h) {
		t.Errorf("%+v, %v", h, err)
	}
	q := Query{"name=a", "status", []byte{1, 0, 255}, 3 * time.Second}
	var answers []string
	silent, err := g.Query(t.Context(), q, func(a Answer) { answers = append(answers, a.Label()+": "+string(a.Data)) })
	want := []string{"a: answer of a", "0200000000000000: answer of "}
	if err != nil || !reflect.DeepEqual(answers, want) || !reflect.DeepEqual(silent, held.silent) || !reflect.DeepEqual(held.asked, q) {
		t.Errorf("%q, %v, %v; asked was %+v", answers, silent, err, held.asked)
	}
	_, err = g.Query(t.Context(), Query{Method: "none"}, nil)
	if e := muster.AsError("", err); e.Kind != muster.Invalid || e.Hint != "try another" {
		t.Errorf("%+v", e)
	}
	if h, silent, err := g.Renew(t.Context()); err != nil || !reflect.DeepEqual(h, held.h) || !reflect.DeepEqual(silent, held.silent) {
		t.Errorf("%v, %v, %v", h, silent, err)
	}
	select {
	case <-s.Released():
		t.Error("it is released already")
	default:
	}
	if silent, err := g.Release(t.Context()); err != nil || !reflect.DeepEqual(silent, held.silent) {
		t.Errorf("%v, %v", silent, err)
	}
	<-s.Released()
}

func TestTheSocketOfADeadSessionIsReplaced(t *testing.T) {
	path := filepath.Join(socketFolder(t), "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as after kill -9
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if JoinSession(path) != nil {
		t.Fatal("a dead session is joined")
	}
	open(t, path, &heldFake{})
	if JoinSession(path) == nil {
		t.Error("nobody serves")
	}
}

func TestAFolderForAllIsClosed(t *testing.T) {
	dir := filepath.Join(socketFolder(t), "open")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	open(t, filepath.Join(dir, "s.sock"), &heldFake{})
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestASessionSurvivesNonsense(t *testing.T) {
	path := filepath.Join(socketFolder(t), "s.sock")
	open(t, path, &heldFake{})
	long := make([]byte, maxRequest+10)
	for i := range long {
		long[i] = ' '
	}
	for name, text := range map[string]string{"no JSON": "}\n", "unknown": `{"do":"dance"}` + "\n", "long": string(long) + "\n", "negative": `{"do":"query","within_ms":-1}` + "\n"} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(text)) // the long one may be cut off
		b := make([]byte, 1000)
		if n, err := c.Read(b); err == nil && !bytes.Contains(b[:n], []byte(`"error"`)) {
			t.Errorf("%s: answered %s", name, b[:n])
		}
		_ = c.Close()
	}
	if JoinSession(path) == nil {
		t.Error("nobody serves any more")
	}
}

func FuzzSession(f *testing.F) {
	f.Add([]byte(`{"do":"query","selector":"all","method":"status","args":"AA==","within_ms":5}`))
	f.Add([]byte(`{"answer":{"id":"0100000000000000","name":"a","code":0,"data":"AA=="}}`))
	f.Add([]byte(`{"holding":{"order":"01000000000000000000000000000000","lease_ms":1,"until":"2026-01-01T00:00:00Z","members":[{"id":"01","code":1}]}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if r, err := parseRequest(line); err == nil && time.Duration(r.WithinMS)*time.Millisecond > maxWithin {
			t.Errorf("%+v", r)
		}
		r, a, err := parseReply(line)
		if err != nil && a != nil && a.ID != (order.NodeID{}) {
			t.Errorf("%v with %v", a, err)
		}
		if h, err := r.Holding.holding(); err == nil && len(h.Members) != len(r.Holding.Members) {
			t.Errorf("%v of %v", h, r.Holding)
		}
	})
}
