package journal

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/delivery"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func record(n int) delivery.Record {
	id := muster.CommandID(fmt.Sprintf("c%04d", n))
	return delivery.Record{
		Seq: uint64(n), Starts: n % 3,
		Command: muster.Command{ID: id, Node: "a.b", Kind: muster.KindCommand, Method: "shell.run", Input: json.RawMessage(`{"x":"` + strings.Repeat("y", n%700) + `"}`), IssuedAt: epoch, Deadline: epoch.Add(time.Hour)},
		Report:  muster.Report{ID: id, Node: "a.b", Seq: 1, History: []muster.Transition{{State: muster.Accepted, Time: epoch}}},
	}
}

func seen(n int) *delivery.Seen {
	return &delivery.Seen{Seq: uint64(n), Key: uint64(n) << 40, Content: 7, Issued: 8, Deadline: 9, Caller: "alice"}
}

func writes(n int) []delivery.Write {
	var all []delivery.Write
	for i := 1; i <= n; i++ {
		r := record(i)
		all = append(all, delivery.Write{Put: &r},
			delivery.Write{Remember: seen(i)},
			delivery.Write{Withdraw: &delivery.Withdrawal{ID: muster.CommandID(fmt.Sprintf("w%d", i)), Caller: "eve", Until: epoch}})
	}
	return all
}

func mustOpen(t *testing.T, path string) (*Journal, delivery.State) {
	t.Helper()
	j, s, err := Open(path, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return j, s
}

func mustApply(t *testing.T, j *Journal, w ...delivery.Write) {
	t.Helper()
	if err := j.Apply(w); err != nil {
		t.Fatal(err)
	}
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "journal")
	j, s := mustOpen(t, path)
	if !reflect.DeepEqual(s, delivery.State{}) {
		t.Fatalf("a new journal holds %+v", s)
	}
	mustApply(t, j, writes(20)...)
	mustApply(t, j,
		delivery.Write{Withdraw: &delivery.Withdrawal{ID: "w1", Caller: "alice", Until: epoch}},
		delivery.Write{Withdraw: &delivery.Withdrawal{ID: "w10", Caller: "alice", Until: epoch}},
		delivery.Write{Delete: 1}, delivery.Write{Forget: 1}, delivery.Write{Unwithdraw: "w1"},
		delivery.Write{Forgot: &delivery.Forgotten{Issued: 1}}, delivery.Write{Forgot: &delivery.Forgotten{Caller: "eve", Deadline: 2}},
		delivery.Write{Forgot: &delivery.Forgotten{Caller: "bob", Deadline: 2}}, delivery.Write{Forgot: &delivery.Forgotten{Caller: "bob"}},
		delivery.Write{Read: &delivery.Mark{Stream: "s", Seq: 3}}, delivery.Write{Read: &delivery.Mark{Stream: "s", Seq: 4}})
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, s = mustOpen(t, path)
	defer j.Close()
	if len(s.Records) != 19 || len(s.Seen) != 19 || len(s.Withdrawals) != 20 {
		t.Errorf("got %d records, %d seen, %d withdrawals; want 19, 19, 20", len(s.Records), len(s.Seen), len(s.Withdrawals))
	}
	if !reflect.DeepEqual(s.Seen[0], *seen(2)) {
		t.Errorf("got %+v, want %+v", s.Seen[0], *seen(2))
	}
	if want := []delivery.Forgotten{{Issued: 1}, {Caller: "eve", Deadline: 2}}; !reflect.DeepEqual(s.Forgotten, want) {
		t.Errorf("got %+v, want %+v", s.Forgotten, want)
	}
	if want := []delivery.Mark{{Stream: "s", Seq: 4}}; !reflect.DeepEqual(s.Read, want) {
		t.Errorf("got %+v, want %+v", s.Read, want)
	}
	if want := record(2); !reflect.DeepEqual(s.Records[0], want) {
		t.Errorf("got %+v, want %+v", s.Records[0], want)
	}
}

func TestApplyIsAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := mustOpen(t, path)
	if err := j.Apply(append(writes(3), delivery.Write{})); muster.KindOf(err) != muster.Unavailable {
		t.Errorf("got %v", err)
	}
	j.Close()
	j, s := mustOpen(t, path)
	defer j.Close()
	if !reflect.DeepEqual(s, delivery.State{}) {
		t.Errorf("half a transaction was kept: %+v", s)
	}
}

// TestKill copies the file between transactions, as a kill would leave it.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	j, _ := mustOpen(t, filepath.Join(dir, "journal"))
	defer j.Close()
	for i, w := range writes(10) {
		mustApply(t, j, w)
		data, err := os.ReadFile(filepath.Join(dir, "journal"))
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(dir, fmt.Sprint("copy", i))
		if err := os.WriteFile(copied, data, 0o600); err != nil {
			t.Fatal(err)
		}
		k, s := mustOpen(t, copied)
		k.Close()
		if got := len(s.Records) + len(s.Seen) + len(s.Withdrawals); got != i+1 || k.SetAside != "" {
			t.Errorf("after %d writes %d are there, set aside %q: %v", i+1, got, k.SetAside, k.Cause)
		}
	}
}

func sample(t *testing.T) (data []byte, want delivery.State) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := mustOpen(t, path)
	all := writes(60)
	for len(all) > 0 {
		n := min(len(all), 45)
		mustApply(t, j, all[:n]...)
		all = all[n:]
	}
	mustApply(t, j, delivery.Write{Delete: 7})
	j.Close()
	j, want = mustOpen(t, path)
	j.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data, want
}

func checkDamaged(t *testing.T, what string, data []byte, want delivery.State) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	j, s, err := Open(path, epoch)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer j.Close()
	if j.SetAside == "" {
		if !reflect.DeepEqual(s, want) {
			t.Errorf("%s: another state was read: %d records, %d seen, %d withdrawals, lost %v", what, len(s.Records), len(s.Seen), len(s.Withdrawals), s.Lost)
		}
		return
	}
	if !s.Lost.Equal(epoch) || len(s.Records)+len(s.Seen)+len(s.Withdrawals) > 0 {
		t.Errorf("%s: set aside, yet %+v", what, s)
	}
	kept, err := os.ReadFile(j.SetAside)
	if err != nil || string(kept) != string(data) {
		t.Errorf("%s: what was set aside is not the file: %v", what, err)
	}
}

func TestCorruption(t *testing.T) {
	const seed = 1
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	data, want := sample(t)
	var at []int
	for page := 0; page < len(data); page += os.Getpagesize() { // headers and first elements
		for i := 0; i < 80; i += 1 + rng.IntN(3) {
			at = append(at, page+i)
		}
	}
	for range 300 {
		at = append(at, rng.IntN(len(data)))
	}
	for _, i := range at {
		bit := byte(1) << rng.IntN(8)
		bad := append([]byte(nil), data...)
		bad[i] ^= bit
		checkDamaged(t, fmt.Sprintf("byte %d of %d xor %#x", i, len(data), bit), bad, want)
	}
	for range 40 {
		from := rng.IntN(len(data))
		bad := append([]byte(nil), data...)
		clear(bad[from:min(len(bad), from+rng.IntN(9000))])
		checkDamaged(t, fmt.Sprintf("zeroes from %d", from), bad, want)
	}
	for _, n := range []int{0, 1, 16, 80, 4095, 4096, 4097, 8192, 12288, 16384, len(data) / 2, len(data) - 4096, len(data) - 1} {
		checkDamaged(t, fmt.Sprintf("cut to %d of %d", n, len(data)), data[:n], want)
	}
}

func TestLossIsRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	for i := range 3 { // the same moment again: nothing set aside may be overwritten
		if err := os.WriteFile(path, fmt.Appendf(nil, "not a journal %d", i), 0o600); err != nil {
			t.Fatal(err)
		}
		j, s := mustOpen(t, path)
		if j.SetAside == "" || j.Cause == nil || !s.Lost.Equal(epoch) {
			t.Fatalf("set aside %q, cause %v, lost %v", j.SetAside, j.Cause, s.Lost)
		}
		j.Close()
	}
	j, s := mustOpen(t, path)
	defer j.Close()
	if !s.Lost.Equal(epoch) || j.SetAside != "" {
		t.Errorf("after reopening: lost %v, set aside %q", s.Lost, j.SetAside)
	}
	if kept, _ := filepath.Glob(path + ".unreadable-*"); len(kept) != 3 {
		t.Errorf("set aside: %q", kept)
	}
}

// TestLossSurvivesACrash: a fresh journal that was made but did not take the
// name yet changes nothing, and the loss is noticed again.
func TestLossSurvivesACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	for _, name := range []string{path, path + ".new"} {
		if err := os.WriteFile(name, []byte("rubbish"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, s := mustOpen(t, path)
	defer j.Close()
	if s.Lost.IsZero() {
		t.Error("the loss was forgotten")
	}
}

func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := mustOpen(t, path)
	defer j.Close()
	if _, _, err := Open(path, epoch); muster.KindOf(err) != muster.Conflict {
		t.Errorf("got %v, want a conflict", err)
	}
	mustApply(t, j, writes(1)...)
}

func TestFolderCannotBeMade(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(filepath.Join(dir, "file", "journal"), epoch); muster.KindOf(err) != muster.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestReadOnlyFolder(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may write everywhere")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open(filepath.Join(dir, "journal"), epoch); muster.KindOf(err) != muster.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestNewerFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := mustOpen(t, path)
	setVersion(t, j, "3")
	j.Close()
	if _, _, err := Open(path, epoch); muster.KindOf(err) != muster.Unsupported {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("a journal of a newer muster was set aside")
	}
}

func FuzzDecode(f *testing.F) {
	good, _ := encode(record(3))
	f.Add(good)
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		var r delivery.Record
		_ = decode(data, &r)
	})
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("rubbish"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = verify(path)
	})
}

// A journal that was deleted is not taken for one that never was.
func TestMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, s := mustOpen(t, path)
	if j.Cause != nil || !s.Lost.IsZero() {
		t.Errorf("the first journal follows a lost one: %v, %v", j.Cause, s.Lost)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	j, s = mustOpen(t, path)
	if j.Cause == nil || j.SetAside != "" || !s.Lost.Equal(epoch) {
		t.Errorf("after a deletion: cause %v, aside %q, lost %v", j.Cause, j.SetAside, s.Lost)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, s = mustOpen(t, path)
	defer j.Close()
	if j.Cause != nil || !s.Lost.Equal(epoch) {
		t.Errorf("the time after: cause %v, lost %v", j.Cause, s.Lost)
	}
}
