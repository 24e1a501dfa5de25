package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"go.etcd.io/bbolt"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/delivery"
)

// fillIDs is how full pages of ids become: their keys only grow.
const fillIDs = 0.95

// seenSize is the length of an encoded delivery.Seen without its caller.
const seenSize = 4 + 8 + 8 + 4 + 4

// encodeSeen writes what is remembered of a command: a checksum, the key, the
// content, the times, and the caller's name to the end. Numbers are big endian.
func encodeSeen(s delivery.Seen) []byte {
	v := make([]byte, 4, seenSize+len(s.Caller))
	v = binary.BigEndian.AppendUint64(v, s.Key)
	v = binary.BigEndian.AppendUint64(v, s.Content)
	v = binary.BigEndian.AppendUint32(v, s.Issued)
	v = binary.BigEndian.AppendUint32(v, s.Deadline)
	v = append(v, s.Caller...)
	binary.BigEndian.PutUint32(v, crc32.Checksum(v[4:], table))
	return v
}

func decodeSeen(k, v []byte) (delivery.Seen, error) {
	if len(k) != 8 || len(v) < seenSize || binary.BigEndian.Uint32(v) != crc32.Checksum(v[4:], table) {
		return delivery.Seen{}, errors.New("checksum does not match")
	}
	return delivery.Seen{
		Seq: binary.BigEndian.Uint64(k), Key: binary.BigEndian.Uint64(v[4:]), Content: binary.BigEndian.Uint64(v[12:]),
		Issued: binary.BigEndian.Uint32(v[20:]), Deadline: binary.BigEndian.Uint32(v[24:]), Caller: string(v[seenSize:]),
	}, nil
}

// readSeen reads all ids. There may be very many, of few callers.
func readSeen(tx *bbolt.Tx, all *[]delivery.Seen) error {
	b := tx.Bucket(bucketIDs)
	if n := b.Stats().KeyN; n > 0 {
		*all = make([]delivery.Seen, 0, n)
	}
	callers := make(map[string]string)
	return b.ForEach(func(k, v []byte) error {
		s, err := decodeSeen(k, v)
		if err != nil {
			return fmt.Errorf("%s %x: %w", bucketIDs, k, err)
		}
		if name, ok := callers[s.Caller]; ok {
			s.Caller = name
		} else {
			callers[s.Caller] = s.Caller
		}
		*all = append(*all, s)
		return nil
	})
}

// Version 1 kept ids as text, without what they were of.
const oldVersion = "1"

var oldSeen = []byte("seen") // command id -> oldID

type oldID struct {
	ID    muster.CommandID `json:"id"`
	Until time.Time        `json:"until"` // a day after the deadline
}

func isOld(tx *bbolt.Tx) bool {
	meta := tx.Bucket(bucketMeta)
	return meta != nil && string(meta.Get(keyVersion)) == oldVersion && tx.Bucket(oldSeen) != nil
}

// upgrade brings a file of version 1 up to date, in one transaction, after all
// that it holds was read once: one that is damaged is set aside as it was.
func (j *Journal) upgrade(now time.Time) error {
	var old bool
	if err := j.db.View(func(tx *bbolt.Tx) error { old = isOld(tx); return nil }); err != nil || !old {
		return err
	}
	state, err := j.read()
	if err != nil {
		return err
	}
	next := uint64(1)
	for _, r := range state.Records {
		next = max(next, r.Seq+1)
	}
	err = j.db.Update(func(tx *bbolt.Tx) error {
		for _, b := range buckets {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		if err := upgradeIDs(tx, next, delivery.Seconds(now)); err != nil {
			return err
		}
		return tx.Bucket(bucketMeta).Put(keyVersion, []byte(version))
	})
	switch muster.KindOf(err) {
	case "", muster.Corrupt:
		return err
	}
	return muster.Errorf(muster.Unavailable, "journal: bring it up to date: %w", err)
}

func upgradeIDs(tx *bbolt.Tx, next uint64, now uint32) error {
	ids := tx.Bucket(bucketIDs)
	ids.FillPercent = fillIDs
	err := tx.Bucket(oldSeen).ForEach(func(k, v []byte) error {
		var old oldID
		if err := decode(v, &old); err != nil {
			return muster.Errorf(muster.Corrupt, "journal: %s %q: %w", oldSeen, k, err)
		}
		// When it was issued is not known, but that was before now and its deadline.
		deadline := delivery.Seconds(old.Until.Add(-24 * time.Hour))
		s := delivery.Seen{Seq: next, Key: delivery.KeyOf(old.ID), Issued: min(deadline, now), Deadline: deadline}
		next++
		return ids.Put(sequence(s.Seq), encodeSeen(s))
	})
	if err != nil {
		return err
	}
	return tx.DeleteBucket(oldSeen)
}
