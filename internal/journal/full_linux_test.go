package journal

import (
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/musterfleet/muster"
)

func setVersion(t *testing.T, j *Journal, v string) {
	t.Helper()
	if err := j.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyVersion, []byte(v)) }); err != nil {
		t.Fatal(err)
	}
}

// TestFull bounds the size of files, which fails a write as a full disk does.
func TestFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, _ := mustOpen(t, path)
	mustApply(t, j, writes(5)...)
	signal.Ignore(syscall.SIGXFSZ)
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(st.Size()), Max: old.Max}); err != nil {
		t.Skip(err)
	}
	err = j.Apply(writes(300))
	again := j.Apply(writes(300))
	if e := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); e != nil {
		t.Fatal(e)
	}
	if muster.KindOf(err) != muster.Unavailable || muster.KindOf(again) != muster.Unavailable {
		t.Fatalf("got %v, then %v", err, again)
	}
	data, err := os.ReadFile(path) // a kill here
	if err != nil {
		t.Fatal(err)
	}
	copied := path + ".copy"
	if err := os.WriteFile(copied, data, 0o600); err != nil {
		t.Fatal(err)
	}
	k, s := mustOpen(t, copied)
	k.Close()
	if k.SetAside != "" || len(s.Records) != 5 {
		t.Errorf("after a kill on a full disk: %d records, set aside %q: %v", len(s.Records), k.SetAside, k.Cause)
	}
	mustApply(t, j, writes(300)...) // there is room again
	j.Close()
	j, s2 := mustOpen(t, path)
	defer j.Close()
	if len(s2.Records) != 300 || reflect.DeepEqual(s, s2) {
		t.Errorf("got %d records", len(s2.Records))
	}
}
