package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/delivery"
)

// oldJournal makes a file as version 1 left it.
func oldJournal(t testing.TB, path string, seen map[string]any) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{FreelistType: bbolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"records", "seen", "withdrawals", "meta"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		for id, x := range seen {
			v, err := encode(x)
			if err != nil {
				return err
			}
			if err := tx.Bucket(oldSeen).Put([]byte(id), v); err != nil {
				return err
			}
		}
		v, err := encode(record(5))
		if err != nil {
			return err
		}
		if err := tx.Bucket(bucketRecords).Put(sequence(5), v); err != nil {
			return err
		}
		return tx.Bucket(bucketMeta).Put(keyVersion, []byte(oldVersion))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOldJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	until := epoch.Add(24*time.Hour + time.Minute)
	oldJournal(t, path, map[string]any{
		"a": map[string]any{"id": "a", "until": until},
		"b": map[string]any{"id": "b", "until": until.Add(-time.Hour)},
	})
	want := []delivery.Seen{
		{Seq: 6, Key: delivery.KeyOf("a"), Issued: delivery.Seconds(epoch), Deadline: delivery.Seconds(epoch.Add(time.Minute))},
		{Seq: 7, Key: delivery.KeyOf("b"), Issued: delivery.Seconds(epoch.Add(-59 * time.Minute)), Deadline: delivery.Seconds(epoch.Add(-59 * time.Minute))},
	}
	for _, time := range []string{"brought up to date", "opened again"} {
		j, s := mustOpen(t, path)
		if j.Cause != nil || len(s.Records) != 1 || !reflect.DeepEqual(s.Seen, want) {
			t.Errorf("%s: cause %v, %d records, seen %+v", time, j.Cause, len(s.Records), s.Seen)
		}
		if err := j.db.View(func(tx *bbolt.Tx) error {
			if tx.Bucket(oldSeen) != nil || string(tx.Bucket(bucketMeta).Get(keyVersion)) != version {
				t.Errorf("%s: it is still of the old version", time)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		mustApply(t, j, delivery.Write{Read: &delivery.Mark{Stream: "s", Seq: 1}})
		j.Close()
	}
}

// A damaged one is set aside as it was.
func TestOldJournalDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	oldJournal(t, path, map[string]any{"a": "no record of an id"})
	j, s := mustOpen(t, path)
	defer j.Close()
	if j.Cause == nil || j.SetAside == "" || !s.Lost.Equal(epoch) {
		t.Errorf("cause %v, set aside %q, lost %v", j.Cause, j.SetAside, s.Lost)
	}
}

func FuzzDecodeSeen(f *testing.F) {
	f.Add(sequence(1), encodeSeen(*seen(1)))
	f.Add([]byte{}, []byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, k, v []byte) {
		if s, err := decodeSeen(k, v); err == nil && string(encodeSeen(s)) != string(v) {
			t.Errorf("%x: %+v is written as %x", v, s, encodeSeen(s))
		}
	})
}

// BenchmarkMillionIDs opens a journal that remembers as many commands as a node
// does: bytes of the file, and of memory that stays in use for one id.
func BenchmarkMillionIDs(b *testing.B) {
	const ids = 1_000_000
	path := filepath.Join(b.TempDir(), "journal")
	j, _, err := Open(path, epoch)
	if err != nil {
		b.Fatal(err)
	}
	for n := 1; n <= ids; {
		var all []delivery.Write
		for ; len(all) < 10_000; n++ {
			id := muster.CommandID(fmt.Sprintf("01JD3Z5K8Q%016d", n))
			all = append(all, delivery.Write{Remember: &delivery.Seen{
				Seq: uint64(n), Key: delivery.KeyOf(id), Content: uint64(n), Issued: 1, Deadline: 1 << 31, Caller: strings.Repeat("o", n%16),
			}})
		}
		if err := j.Apply(all); err != nil {
			b.Fatal(err)
		}
	}
	j.Close()
	for b.Loop() {
		before := inUse()
		j, s, err := Open(path, epoch)
		if err != nil || len(s.Seen) != ids {
			b.Fatal(err, len(s.Seen))
		}
		b.ReportMetric(float64(size(b, path))/ids, "file-B/id")
		box := delivery.New(delivery.Config{}, s, epoch)
		s = delivery.State{}
		b.StopTimer()
		b.ReportMetric(float64(inUse()-before)/ids, "heap-B/id")
		runtime.KeepAlive(box)
		j.Close()
		b.StartTimer()
	}
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func size(b *testing.B, path string) int64 {
	b.Helper()
	st, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return st.Size()
}
