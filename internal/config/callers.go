package config

import (
	"encoding/json"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
)

// A CallerRecord is one identity that the fleet's issuer has signed, with the
// credentials of the broker that were made with it.
type CallerRecord struct {
	Name      string    `json:"name"`
	Key       string    `json:"key"`        // public, of the identity
	BrokerKey string    `json:"broker_key"` // public, of the credentials
	Groups    []string  `json:"groups,omitempty"`
	Bounded   bool      `json:"bounded,omitempty"` // to some methods or nodes; an older muster did not note it
	Issued    time.Time `json:"issued"`
	Expires   time.Time `json:"expires"`
}

// Callers are the identities that were made with the fleet's folder.
type Callers struct {
	// Partial is set when the fleet is older than this file: there may be
	// identities that are not in it.
	Partial bool           `json:"partial,omitempty"`
	Issued  []CallerRecord `json:"issued"`
}

// Callers reads who was made a caller.
func (f FleetFolder) Callers() (Callers, error) {
	data, err := readOptional(f.path("callers.json"))
	if err != nil {
		return Callers{}, err
	}
	if data == nil {
		return Callers{Partial: true}, nil
	}
	var c Callers
	if err := json.Unmarshal(data, &c); err != nil {
		return Callers{}, muster.Errorf(muster.Corrupt, "%s cannot be read: %w", f.path("callers.json"), err).
			WithHint("restore it from a backup: without it, the credentials of callers cannot be revoked at the broker")
	}
	return c, nil
}

// SetCallers replaces what Callers reads. One process at a time may do so.
func (f FleetFolder) SetCallers(c Callers) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return muster.Errorf(muster.Internal, "write the callers: %w", err)
	}
	return WriteFile(f.path("callers.json"), append(data, '\n'))
}

// RevokedCallers reads the list of revoked callers that was signed last, perhaps
// by an issuer that was replaced since. It is not ok when there is none.
func (f FleetFolder) RevokedCallers() (list aaa.SignedRevocations, ok bool, err error) {
	data, err := readOptional(f.RevokedCallersFile())
	if err != nil || data == nil {
		return list, false, err
	}
	list, err = aaa.ReadKeptRevocations(data, f.Fleet.ID)
	if err != nil {
		return list, false, muster.Errorf(muster.Corrupt, "%s cannot be read: %w", f.RevokedCallersFile(), err).
			WithHint("restore it from a backup: without it, revoked callers could come back")
	}
	return list, true, nil
}

// SetRevokedCallers replaces the list. One process at a time may do so.
func (f FleetFolder) SetRevokedCallers(signed []byte) error {
	return WriteFile(f.RevokedCallersFile(), signed)
}

// RevokedCallersFile is where the list of revoked callers is.
func (f FleetFolder) RevokedCallersFile() string { return f.path("revoked-callers.json") }
