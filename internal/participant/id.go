package participant

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/blake2b"

	"github.com/musterfleet/muster"
)

// StableID returns the id by which a constellation knows an agent, from the file
// order-id in its folder. If there is none the id is made, and kept there:
// BLAKE2b of the cluster key, the machine's id (/etc/machine-id), the program and
// the name, so that an agent which keeps no state has the same id at each start;
// without a machine's id it is drawn at random. Two agents must not share a folder.
func StableID(folder, cluster, program, name string) ([16]byte, error) {
	path := filepath.Join(folder, "order-id")
	data, err := os.ReadFile(path)
	if err == nil {
		raw, err := hex.DecodeString(strings.TrimSpace(string(data)))
		if err != nil || len(raw) != 16 {
			return [16]byte{}, muster.Errorf(muster.Corrupt, "%s is not the id of an agent", path).WithHint("remove it, and the agent gets another one")
		}
		return [16]byte(raw), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return [16]byte{}, muster.Errorf(muster.Unavailable, "read the agent's id: %w", err)
	}
	id, lasting := machineID(cluster, program, name)
	if err := os.MkdirAll(folder, 0o700); err == nil {
		err = os.WriteFile(path, []byte(hex.EncodeToString(id[:])+"\n"), 0o600)
		lasting = lasting || err == nil
	}
	if !lasting {
		return id, muster.Errorf(muster.Unavailable, "this machine has no id, and none can be kept at %s", path)
	}
	return id, nil
}

// machineID makes an id, and reports whether the next start makes the same.
func machineID(cluster, program, name string) (id [16]byte, lasting bool) {
	machine, err := os.ReadFile("/etc/machine-id")
	text := strings.TrimSpace(string(machine))
	if err != nil || len(text) != 32 {
		_, _ = rand.Read(id[:]) // never fails
		return id, false
	}
	sum := blake2b.Sum256([]byte(strings.Join([]string{"muster-order-id-v0", cluster, text, program, name}, "\x00")))
	return [16]byte(sum[:16]), true
}
