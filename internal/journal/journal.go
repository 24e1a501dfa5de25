// Package journal keeps what a node must not forget in a bbolt file: commands
// from their acceptance to their last report, ids of what is over, and
// withdrawals of what has not come yet. Each Apply is one durable transaction.
//
// A file that cannot be read is set aside under another name, never deleted.
// After that, and when the file is not there any more, a new journal remembers
// when: what was issued before that moment may
// have run already.
package journal

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/delivery"
)

// Buckets of the file.
var (
	bucketRecords     = []byte("records")     // sequence, 8 bytes big endian -> delivery.Record
	bucketIDs         = []byte("ids")         // sequence, 8 bytes big endian -> see encodeSeen
	bucketForgotten   = []byte("forgotten")   // @ caller -> delivery.Forgotten
	bucketWithdrawals = []byte("withdrawals") // command id @ caller -> delivery.Withdrawal
	bucketRead        = []byte("read")        // stream of the broker -> delivery.Mark
	bucketMeta        = []byte("meta")
	keyLost           = []byte("lost")    // time at which an earlier journal was lost
	keyVersion        = []byte("version") // of this format
)

var buckets = [][]byte{bucketRecords, bucketIDs, bucketForgotten, bucketWithdrawals, bucketRead, bucketMeta}

// version of the file's format. One of version 1 is brought up to date.
const version = "2"

// A Journal is an open file. It is safe for concurrent use.
type Journal struct {
	db *bbolt.DB
	// Cause says why an earlier journal was lost, nil if none was: it was
	// unreadable, and is now at SetAside, or it was not there any more.
	Cause    error
	SetAside string
}

// Open reads the journal at path, or makes one. An unreadable file is set
// aside. The error of a journal that another process has open, or of a disk
// that cannot be written, is returned: then nothing may be accepted.
func Open(path string, now time.Time) (*Journal, delivery.State, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, delivery.State{}, muster.Errorf(muster.Unavailable, "journal: make its folder: %w", err)
	}
	j, state, err := find(path, now)
	switch {
	case err == nil:
		return j, state, j.mark(path, now)
	case muster.KindOf(err) != muster.Corrupt:
		return nil, state, err
	}
	cause := err
	aside, err := replace(path, now)
	if err != nil {
		return nil, delivery.State{}, err
	}
	if j, state, err = load(path, now); err != nil {
		return nil, delivery.State{}, err
	}
	j.SetAside, j.Cause = aside, cause
	return j, state, j.mark(path, now)
}

// marker is a file that says that there is a journal, so that one which was
// deleted is not taken for one that never was. It has the time of the first.
func marker(path string) string { return path + ".made" }

// mark makes the marker. Without it the journal is closed.
func (j *Journal) mark(path string, now time.Time) error {
	if exists(marker(path)) {
		return nil
	}
	if err := os.WriteFile(marker(path), []byte(now.UTC().Format(time.RFC3339)+"\n"), 0o600); err != nil {
		_ = j.db.Close() // the first error counts
		return muster.Errorf(muster.Unavailable, "journal: note that there is one: %w", err)
	}
	return nil
}

// find loads the journal. One that is missing though there was one is as bad
// as one that cannot be read.
func find(path string, now time.Time) (*Journal, delivery.State, error) {
	if !exists(path) && exists(marker(path)) {
		return nil, delivery.State{}, muster.Errorf(muster.Corrupt, "journal: %s is missing, though there was one", path)
	}
	return load(path, now)
}

// replace sets an unreadable file aside and puts an empty journal in its place
// that knows of the loss. That one is complete before it takes the name, so
// that a crash in between cannot make the loss forgotten.
func replace(path string, now time.Time) (aside string, err error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", muster.Errorf(muster.Unavailable, "journal: remove a leftover: %w", err)
	}
	j, _, err := load(fresh, now)
	if err != nil {
		return "", err
	}
	if err := errors.Join(j.recordLoss(now), j.db.Close()); err != nil {
		return "", muster.Errorf(muster.Unavailable, "journal: make a new one: %w", err)
	}
	if aside, err = setAside(path, now); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return "", muster.Errorf(muster.Unavailable, "journal: it is unreadable and cannot be set aside: %w", err)
	}
	return aside, nil
}

// setAside gives the file another name, beside its own where the file system
// has links. It returns no name when there is no file.
func setAside(path string, now time.Time) (aside string, err error) {
	if !exists(path) {
		return "", nil
	}
	base := fmt.Sprintf("%s.unreadable-%s", path, now.UTC().Format("20060102T150405.000"))
	aside = base
	for i := 2; ; i++ {
		err = os.Link(path, aside)
		if !errors.Is(err, os.ErrExist) {
			break
		}
		aside = fmt.Sprintf("%s-%d", base, i)
	}
	if err != nil { // a file system without links
		err = os.Rename(path, aside)
	}
	return aside, err
}

// load opens and reads a file. An error of kind Corrupt means that its content
// cannot be trusted.
func load(path string, now time.Time) (j *Journal, state delivery.State, err error) {
	existed := exists(path)
	// bbolt panics where it meets pages that make no sense, and faults where
	// pages are missing.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var db *bbolt.DB
	if existed {
		if err := inspect(path); err != nil {
			return nil, state, err
		}
	}
	defer func() {
		if r := recover(); r != nil {
			err = muster.Errorf(muster.Corrupt, "journal: %s: %v", path, r)
		}
		if err != nil && db != nil {
			_ = db.Close() // the first error counts
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, state, openError(path, err, existed)
	}
	j = &Journal{db: db}
	if err = j.prepare(); err != nil {
		return nil, state, err
	}
	if err = j.upgrade(now); err != nil {
		return nil, state, err
	}
	state, err = j.read()
	return j, state, err
}

// lockTimeout is how long another agent may take to let go of the file.
const lockTimeout = 3 * time.Second

// inspect verifies a file under bbolt's lock, which a reader shares: what
// another agent is writing must not be taken for damage.
func inspect(path string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = muster.Errorf(muster.Corrupt, "journal: %s: %v", path, r)
		}
	}()
	if st, err := os.Stat(path); err == nil && st.Size() == 0 {
		return muster.Errorf(muster.Corrupt, "journal: %s is empty", path)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, ReadOnly: true})
	if err != nil {
		return openError(path, err, true)
	}
	defer func() { _ = db.Close() }() // nothing was written
	if err := verify(path); err != nil {
		return muster.Errorf(muster.Corrupt, "journal: %s: %w", path, err)
	}
	return nil
}

func openError(path string, err error, existed bool) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return muster.Errorf(muster.Conflict, "journal: %s is in use by another agent", path).
			WithHint("stop it, or give this one another folder with --state")
	case existed && isFormat(err):
		return muster.Errorf(muster.Corrupt, "journal: %s: %w", path, err)
	}
	return muster.Errorf(muster.Unavailable, "journal: open %s: %w", path, err)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// isFormat tells damaged content from a failing system call.
func isFormat(err error) bool {
	if errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrVersionMismatch) || errors.Is(err, bolterrors.ErrChecksum) {
		return true
	}
	var pathErr *os.PathError
	var sysErr *os.SyscallError
	var errno syscall.Errno
	return !errors.As(err, &pathErr) && !errors.As(err, &sysErr) && !errors.As(err, &errno)
}

// prepare makes what a new file lacks. It changes nothing else: a file that
// turns out to be damaged is set aside as it was.
func (j *Journal) prepare() error {
	ready := false
	err := j.db.View(func(tx *bbolt.Tx) error {
		ready = isOld(tx)
		if !ready {
			ready = !slices.ContainsFunc(buckets, func(b []byte) bool { return tx.Bucket(b) == nil }) &&
				string(tx.Bucket(bucketMeta).Get(keyVersion)) == version
		}
		return nil
	})
	if err != nil || ready {
		return err
	}
	err = j.db.Update(func(tx *bbolt.Tx) error {
		for _, b := range buckets {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		switch v := meta.Get(keyVersion); {
		case v == nil:
			return meta.Put(keyVersion, []byte(version))
		case string(v) == oldVersion:
			return muster.Errorf(muster.Corrupt, "journal: a part of it is missing")
		case string(v) != version:
			return muster.Errorf(muster.Unsupported, "journal: its format has version %q; this muster knows %q", v, version).
				WithHint("install a newer muster here")
		}
		return nil
	})
	if err != nil && muster.KindOf(err) == muster.Internal {
		kind := muster.Unavailable
		if isFormat(err) { // a damaged page can look like a value where a bucket should be
			kind = muster.Corrupt
		}
		return muster.Errorf(kind, "journal: write: %w", err)
	}
	return err
}

func (j *Journal) recordLoss(now time.Time) error {
	err := j.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(keyLost, []byte(now.UTC().Format(time.RFC3339Nano)))
	})
	if err != nil {
		return muster.Errorf(muster.Unavailable, "journal: write: %w", err)
	}
	return nil
}

// read loads everything. bbolt does not checksum its pages, so each value
// carries a checksum of its own.
func (j *Journal) read() (delivery.State, error) {
	var s delivery.State
	err := j.db.View(func(tx *bbolt.Tx) error {
		if err := check(tx, j.db.Path()); err != nil {
			return err
		}
		if v := tx.Bucket(bucketMeta).Get(keyLost); v != nil {
			t, err := time.Parse(time.RFC3339Nano, string(v))
			if err != nil {
				return err
			}
			s.Lost = t
		}
		err := errors.Join(
			readAll(tx, bucketRecords, &s.Records),
			readAll(tx, bucketWithdrawals, &s.Withdrawals))
		if err != nil || isOld(tx) {
			return err
		}
		return errors.Join(
			readSeen(tx, &s.Seen),
			readAll(tx, bucketForgotten, &s.Forgotten),
			readAll(tx, bucketRead, &s.Read))
	})
	if err != nil {
		return delivery.State{}, muster.Errorf(muster.Corrupt, "journal: %s: %w", j.db.Path(), err)
	}
	return s, nil
}

// check looks at the structure of the file. A file that was cut short is
// noticed first: touching a page beyond its end would be a fault.
func check(tx *bbolt.Tx, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.Size() < tx.Size() {
		return fmt.Errorf("the file has %d bytes; its content needs %d", st.Size(), tx.Size())
	}
	for e := range tx.Check() { // to its end, or its goroutine would stay
		err = cmp.Or(err, e)
	}
	return err
}

func readAll[T any](tx *bbolt.Tx, bucket []byte, all *[]T) error {
	return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		var x T
		if err := decode(v, &x); err != nil {
			return fmt.Errorf("%s %q: %w", bucket, k, err)
		}
		*all = append(*all, x)
		return nil
	})
}

var table = crc32.MakeTable(crc32.Castagnoli)

// encode writes a value as its checksum, 4 bytes big endian, and JSON.
func encode(x any) ([]byte, error) {
	data, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(nil, crc32.Checksum(data, table)), data...), nil
}

func decode(v []byte, x any) error {
	if len(v) < 4 || binary.BigEndian.Uint32(v) != crc32.Checksum(v[4:], table) {
		return errors.New("checksum does not match")
	}
	dec := json.NewDecoder(bytes.NewReader(v[4:]))
	return dec.Decode(x)
}

// Apply makes the changes durable, all or none.
func (j *Journal) Apply(writes []delivery.Write) error {
	err := j.db.Update(func(tx *bbolt.Tx) error {
		tx.Bucket(bucketIDs).FillPercent = fillIDs
		for _, w := range writes {
			if err := apply(tx, w); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return muster.Errorf(muster.Unavailable, "journal: write: %w", err)
	}
	return nil
}

func apply(tx *bbolt.Tx, w delivery.Write) error {
	put := func(bucket, key []byte, x any) error {
		v, err := encode(x)
		if err != nil {
			return err
		}
		return tx.Bucket(bucket).Put(key, v)
	}
	switch {
	case w.Put != nil:
		return put(bucketRecords, sequence(w.Put.Seq), w.Put)
	case w.Delete != 0:
		return tx.Bucket(bucketRecords).Delete(sequence(w.Delete))
	case w.Remember != nil:
		return tx.Bucket(bucketIDs).Put(sequence(w.Remember.Seq), encodeSeen(*w.Remember))
	case w.Forget != 0:
		return tx.Bucket(bucketIDs).Delete(sequence(w.Forget))
	case w.Forgot != nil && w.Forgot.Issued == 0 && w.Forgot.Deadline == 0:
		return tx.Bucket(bucketForgotten).Delete([]byte("@" + w.Forgot.Caller))
	case w.Forgot != nil:
		return put(bucketForgotten, []byte("@"+w.Forgot.Caller), w.Forgot)
	case w.Read != nil:
		return put(bucketRead, []byte(w.Read.Stream), w.Read)
	case w.Withdraw != nil:
		return put(bucketWithdrawals, []byte(string(w.Withdraw.ID)+"@"+w.Withdraw.Caller), w.Withdraw)
	case w.Unwithdraw != "":
		return deletePrefix(tx.Bucket(bucketWithdrawals), []byte(string(w.Unwithdraw)+"@"))
	}
	return errors.New("a write without content")
}

// deletePrefix deletes all keys that begin so. A cursor may skip a key after a
// deletion, so it seeks anew.
func deletePrefix(b *bbolt.Bucket, prefix []byte) error {
	for {
		k, _ := b.Cursor().Seek(prefix)
		if !bytes.HasPrefix(k, prefix) { // a nil key ends the bucket
			return nil
		}
		if err := b.Delete(k); err != nil {
			return err
		}
	}
}

func sequence(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// Close ends the use of the file.
func (j *Journal) Close() error { return j.db.Close() }
