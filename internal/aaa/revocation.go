package aaa

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
)

// Limits of a list of revocations. The list is part of what every node reads
// when it connects, which the broker bounds at 128 KiB.
const (
	MaxRevocationList   = 88 << 10 // bytes, encoded
	MaxRevocations      = 500      // in one list
	MaxRevocationReason = 200      // bytes
	maxSerial           = 1 << 53  // beyond it, JSON readers differ
)

// revocationPrefix is put before a list when it is signed, so that no other
// signature of the issuer's key is taken for one of a list.
const revocationPrefix = "muster/revocations/1\n"

const revocationVersion = 1

var (
	// ErrRevoked is in the chain of an error when the caller's JWT was revoked.
	ErrRevoked = errors.New("revoked")
	// ErrOlder is in the chain of an error when a list of revocations is older
	// than the one in force, or differs from it under the same number.
	ErrOlder = errors.New("not newer than the list of revocations in force")
)

// A Revocation makes JWTs of one caller worthless before they expire: those of
// one key, or without a key all that were issued to the name until At.
type Revocation struct {
	Name   string    `json:"name"`
	Key    string    `json:"key,omitempty"` // nkey
	At     time.Time `json:"at"`            // in whole seconds
	Until  time.Time `json:"until,omitzero"`
	Reason string    `json:"reason,omitempty"`
}

// Matches reports whether a JWT that was issued to the key of the name is
// revoked.
func (r Revocation) Matches(name, key string, issued time.Time) bool {
	if r.Key != "" {
		return r.Key == key
	}
	return r.Name == name && !issued.After(r.At)
}

// Over reports whether all JWTs that it is about have expired, so that a list
// can do without it.
func (r Revocation) Over(now time.Time) bool {
	return !r.Until.IsZero() && now.After(r.Until.Add(24*time.Hour)) // against clocks that are behind
}

// A RevocationList is all that one issuer has revoked in a fleet and that has
// not expired. Of two lists of one issuer the one with the higher serial counts.
// While an issuer is being replaced by another, the lists of both count, for all
// callers: the new one revokes also what the old one has issued.
type RevocationList struct {
	Version  int          `json:"v"`
	Fleet    string       `json:"fleet"`
	Serial   uint64       `json:"serial"`
	IssuedAt time.Time    `json:"issued_at"`
	Revoked  []Revocation `json:"revoked"`
}

var revocationShape = shapeOf[RevocationList]()

type wireRevocations struct {
	Issuer    string `json:"issuer"`
	List      string `json:"list"`
	Signature string `json:"signature"`
}

var wireRevocationsShape = shapeOf[wireRevocations]()

// NextSerial returns the serial of the list that follows one with the given
// serial, 0 for none. It is the time in seconds where that is higher: a list
// that is made with a folder that came from a backup is newer all the same.
func NextSerial(last uint64, now time.Time) uint64 {
	return max(last+1, uint64(max(now.Unix(), 1)))
}

// SignRevocations returns the list, signed, as one JSON object.
func (i *Issuer) SignRevocations(l RevocationList) ([]byte, error) {
	l.Version = revocationVersion
	if err := l.validate(); err != nil {
		return nil, err
	}
	list, err := marshalPlain(l)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "encode the list of revocations: %w", err)
	}
	data, err := json.Marshal(wireRevocations{
		Issuer: i.PublicKey(), List: base64.StdEncoding.EncodeToString(list),
		Signature: base64.StdEncoding.EncodeToString(i.key.sign(revocationBytes(list))),
	})
	if err != nil {
		return nil, muster.Errorf(muster.Internal, "encode the list of revocations: %w", err)
	}
	if len(data) > MaxRevocationList {
		return nil, tooManyRevocations("%d bytes; at most %d", len(data), MaxRevocationList)
	}
	return data, nil
}

func tooManyRevocations(format string, args ...any) error {
	return muster.Errorf(muster.Full, "the list of revocations has "+format+" are allowed", args...).
		WithHint("entries leave it when what they revoke has expired; if that takes too long, replace the fleet's issuer")
}

func revocationBytes(list []byte) []byte { return append([]byte(revocationPrefix), list...) }

func (l RevocationList) validate() error {
	if err := checkFleet(l.Fleet); err != nil {
		return err
	}
	switch {
	case l.Version != revocationVersion:
		return muster.Errorf(muster.Unsupported, "list of revocations has version %d; expected %d", l.Version, revocationVersion)
	case l.Serial < 1 || l.Serial > maxSerial:
		return muster.Errorf(muster.Invalid, "list of revocations has serial %d; expected 1 to %d", l.Serial, uint64(maxSerial))
	case len(l.Revoked) > MaxRevocations:
		return tooManyRevocations("%d entries; at most %d", len(l.Revoked), MaxRevocations)
	}
	for _, r := range l.Revoked {
		if err := r.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (r Revocation) validate() error {
	if r.Name != "" || r.Key == "" {
		if err := checkName("revoked caller's name", r.Name, MaxName); err != nil {
			return err
		}
	}
	if r.Key != "" {
		if _, err := parsePublic(nkeys.PrefixByteUser, r.Key); err != nil {
			return err
		}
	}
	if r.Reason != "" {
		if err := checkName("reason", r.Reason, MaxRevocationReason); err != nil {
			return err
		}
	}
	if r.At.IsZero() || r.At.Nanosecond() != 0 {
		return muster.Errorf(muster.Invalid, "revocation of %q: its time %s is not one in whole seconds", r.Name, r.At.Format(time.RFC3339Nano))
	}
	return nil
}

// SignedRevocations are a list whose signature was good when it was read.
type SignedRevocations struct {
	Issuer string // nkey
	RevocationList
	data []byte
}

// Encoded returns the list as it was read.
func (s SignedRevocations) Encoded() []byte { return s.data }

// ReadRevocations reads a list that one of the issuers (nkeys) has signed for
// the fleet. It refuses unknown and repeated keys, trailing data, other
// spellings, and anything beyond the limits.
func ReadRevocations(data []byte, fleet string, issuers ...string) (SignedRevocations, error) {
	if len(data) > MaxRevocationList {
		return SignedRevocations{}, muster.Errorf(muster.Invalid, "list of revocations has %d bytes; at most %d are allowed", len(data), MaxRevocationList)
	}
	var wire wireRevocations
	if err := decodeStrict(data, wireRevocationsShape, &wire); err != nil {
		return SignedRevocations{}, muster.Errorf(muster.Invalid, "list of revocations: %w", err)
	}
	list, err := wire.open(issuers)
	if err != nil {
		return SignedRevocations{}, err
	}
	s := SignedRevocations{Issuer: wire.Issuer, data: bytes.Clone(data)}
	if err := decodeStrict(list, revocationShape, &s.RevocationList); err != nil {
		return SignedRevocations{}, muster.Errorf(muster.Invalid, "list of revocations: %w", err)
	}
	if err := s.validate(); err != nil {
		return SignedRevocations{}, err
	}
	if s.Fleet != fleet {
		return SignedRevocations{}, muster.Errorf(muster.Denied, "list of revocations is for fleet %q; this is fleet %q", s.Fleet, fleet)
	}
	return s, nil
}

// ReadKeptRevocations is ReadRevocations for a list in a place to which the
// issuers alone can write: whichever has signed it, and may have been replaced
// since.
func ReadKeptRevocations(data []byte, fleet string) (SignedRevocations, error) {
	var wire wireRevocations
	if len(data) <= MaxRevocationList {
		_ = json.Unmarshal(data, &wire) // what is wrong with it is said below
	}
	return ReadRevocations(data, fleet, wire.Issuer)
}

// open returns the list's bytes if one of the issuers has signed them.
func (w wireRevocations) open(issuers []string) ([]byte, error) {
	if !slices.Contains(issuers, w.Issuer) {
		return nil, muster.Errorf(muster.Denied, "list of revocations names issuer %q, which is not one of this fleet", clip(w.Issuer, 80))
	}
	key, err := parsePublic(nkeys.PrefixByteAccount, w.Issuer)
	if err != nil {
		return nil, err
	}
	list, err := decodeBase64(w.List)
	if err != nil {
		return nil, muster.Errorf(muster.Invalid, "list of revocations: %w", err)
	}
	signature, err := decodeBase64(w.Signature)
	if err != nil || len(signature) != ed25519.SignatureSize {
		return nil, muster.Errorf(muster.Invalid, "list of revocations: its signature is not %d bytes in base64", ed25519.SignatureSize)
	}
	if !ed25519.Verify(key, revocationBytes(list), signature) {
		return nil, muster.Errorf(muster.Denied, "list of revocations was not signed by the issuer that it names")
	}
	return list, nil
}

// RevocationMark returns a short text that is the same for the same lists, by
// which a node says which ones it has. It is empty for none.
func RevocationMark[List ~[]byte](lists []List) string {
	if len(lists) == 0 {
		return ""
	}
	h := sha256.New()
	for _, l := range slices.SortedFunc(slices.Values(lists), func(x, y List) int { return bytes.Compare(x, y) }) {
		h.Write(l)
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// JoinRevocations returns lists as one JSON array, for a file.
func JoinRevocations(lists [][]byte) []byte {
	return slices.Concat([]byte("["), bytes.Join(lists, []byte(",\n")), []byte("]\n"))
}

// SplitRevocations reads what JoinRevocations wrote. The lists are still to be
// read.
func SplitRevocations(data []byte) ([]json.RawMessage, error) {
	const most = MaxIssuers * (MaxRevocationList + 2)
	if len(data) > most {
		return nil, muster.Errorf(muster.Invalid, "lists of revocations have %d bytes; at most %d are allowed", len(data), most)
	}
	var lists []json.RawMessage
	if err := decodeStrict(data, nil, &lists); err != nil {
		return nil, muster.Errorf(muster.Invalid, "lists of revocations: %w", err)
	}
	if len(lists) > MaxIssuers {
		return nil, muster.Errorf(muster.Invalid, "there are %d lists of revocations; at most %d are allowed", len(lists), MaxIssuers)
	}
	return lists, nil
}

// ReadRevocations reads a list that one of the verifier's issuers has signed.
func (v *Verifier) ReadRevocations(data []byte) (SignedRevocations, error) {
	var issuers []string
	for _, i := range v.issuers {
		issuers = append(issuers, i.text)
	}
	return ReadRevocations(data, v.fleet, issuers...)
}

// Revoke puts a list in force that ReadRevocations has returned, in place of its
// issuer's earlier one. It reports whether that is news; a list that is older is refused with
// ErrOlder.
func (v *Verifier) Revoke(s SignedRevocations) (news bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	old, known := v.revoked[s.Issuer]
	switch {
	case known && bytes.Equal(old.data, s.data):
		return false, nil
	case known && s.Serial <= old.Serial:
		return false, muster.Errorf(muster.Conflict, "list of revocations %d, of %s, is refused: %w, which is %d, of %s",
			s.Serial, s.IssuedAt.UTC().Format(time.RFC3339), ErrOlder, old.Serial, old.IssuedAt.UTC().Format(time.RFC3339))
	}
	next := maps.Clone(v.revoked)
	if next == nil {
		next = map[string]SignedRevocations{}
	}
	next[s.Issuer] = s
	v.revoked = next
	return true, nil
}

// Revocations returns the lists in force as they were read, sorted by issuer.
func (v *Verifier) Revocations() [][]byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all [][]byte
	for _, issuer := range slices.Sorted(maps.Keys(v.revoked)) {
		all = append(all, v.revoked[issuer].data)
	}
	return all
}

// Revoked returns why nothing of the caller may run, nil when it was not
// revoked. ErrRevoked is in the chain of the error.
func (v *Verifier) Revoked(c Caller) *muster.Error {
	v.mu.Lock()
	lists := v.revoked
	v.mu.Unlock()
	for _, list := range lists {
		for _, r := range list.Revoked {
			if r.Matches(c.Name, c.PublicKey, c.Issued) {
				return r.refusal(c.Name)
			}
		}
	}
	return nil
}

func (r Revocation) refusal(name string) *muster.Error {
	reason := ""
	if r.Reason != "" {
		reason = ": " + r.Reason
	}
	return muster.Errorf(muster.Denied, "the identity of caller %q was %w at %s%s", name, ErrRevoked, r.At.UTC().Format(time.RFC3339), reason).
		WithHint("ask the fleet's issuer for a new identity")
}
