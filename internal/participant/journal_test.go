package participant

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/musterfleet/muster/internal/order"
)

func openJournal(t *testing.T, folder string) *Journal {
	t.Helper()
	j, err := OpenJournal(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() }) // the test may have closed it
	return j
}

// published returns what one call of Publish hands over, when it fails after so
// many lines.
func published(j *Journal, failAfter int) (lines []string, err error) {
	err = j.Publish(func(line string) error {
		if len(lines) == failAfter {
			return errors.New("the broker is away")
		}
		lines = append(lines, line)
		return nil
	})
	return lines, err
}

func TestTheJournalIsPublishedOnce(t *testing.T) {
	folder := t.TempDir()
	j := openJournal(t, folder)
	for seq := range uint32(3) {
		q := order.Query{Seq: seq + 1, Method: "script", Args: []byte("secret")}
		if err := errors.Join(j.Runs(q), j.Ran(q, order.Failed, 3*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	first, err := published(j, 2)
	if err == nil || len(first) != 2 || !strings.Contains(first[0], " runs ") || !strings.Contains(first[1], "code=failed ms=3") {
		t.Fatalf("%q, %v", first, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = openJournal(t, folder) // an agent that was started anew
	rest, err := published(j, 100)
	if err != nil || len(rest) != 4 || !strings.Contains(rest[0], "seq=2") {
		t.Fatalf("%q, %v", rest, err)
	}
	if again, err := published(j, 100); err != nil || len(again) != 0 {
		t.Errorf("published twice: %q, %v", again, err)
	}
	all := append(first, rest...)
	if !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != 6 {
		t.Errorf("the times do not differ: %q", all)
	}
	info, err := os.Stat(filepath.Join(folder, "order.log"))
	if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if data, err := os.ReadFile(filepath.Join(folder, "order.log")); err != nil || strings.Contains(string(data), "secret") {
		t.Errorf("arguments are in clear, %v", err)
	}
}

// A full file is set aside while the agent runs, and what was not published of
// it still is, also by an agent that was started anew.
func TestAFullJournalIsBegunAnew(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "order.log")
	full := func(j *Journal, letter string) *Journal {
		t.Helper()
		if j != nil {
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path, []byte(strings.Repeat(letter+"\n", maxJournal/2)), 0o600); err != nil {
			t.Fatal(err)
		}
		return openJournal(t, folder)
	}
	if err := os.WriteFile(path+".published", fmt.Append(nil, maxJournal-4), 0o600); err != nil {
		t.Fatal(err)
	}
	j := full(nil, "x")
	if lines, err := published(j, 1); err == nil || !slices.Equal(lines, []string{"x"}) {
		t.Errorf("%q, %v", lines, err)
	}
	if err := j.Runs(order.Query{Seq: 1}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path + ".1"); err != nil || info.Size() != maxJournal {
		t.Errorf("%v, %v", info, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = openJournal(t, folder)
	if lines, err := published(j, 10); err != nil || len(lines) != 2 || lines[0] != "x" || !strings.Contains(lines[1], " runs ") {
		t.Errorf("%q, %v", lines, err)
	}
	j = full(j, "y") // as if it had grown
	if err := os.WriteFile(path+".published", fmt.Append(nil, 2*maxJournal-2), 0o600); err != nil {
		t.Fatal(err)
	}
	j = full(j, "z")
	for seq := range uint32(3) {
		if err := j.Runs(order.Query{Seq: seq}); err != nil {
			t.Fatal(err)
		}
	}
	if lines, err := published(j, 10); err != nil || len(lines) != 4 || lines[0] != "z" {
		t.Errorf("%q, %v", lines, err)
	}
	if again, err := published(j, 10); err != nil || len(again) != 0 {
		t.Errorf("published twice: %q, %v", again, err)
	}
}

// A line that a crash has cut short stays by itself.
func TestATornLineStaysByItself(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "order.log"), []byte("whole\npart of a li"), 0o600); err != nil {
		t.Fatal(err)
	}
	j := openJournal(t, folder)
	if err := j.Runs(order.Query{Seq: 1}); err != nil {
		t.Fatal(err)
	}
	lines, err := published(j, 10)
	if err != nil || len(lines) != 3 || lines[1] != "part of a li" || !strings.Contains(lines[2], " runs ") {
		t.Errorf("%q, %v", lines, err)
	}
}

func TestIDsLast(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	first, err := StableID(folder, "lab", "scout", "a")
	if err != nil {
		t.Fatal(err)
	}
	again, err := StableID(folder, "lab", "scout", "renamed")
	if err != nil || again != first {
		t.Errorf("%x becomes %x, %v", first, again, err)
	}
	if other, err := StableID(t.TempDir(), "lab", "scout", "b"); err != nil || other == first {
		t.Errorf("two agents have the id %x, %v", other, err)
	}
	if err := os.WriteFile(filepath.Join(folder, "order-id"), []byte("xyz"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := StableID(folder, "lab", "scout", "a"); err == nil {
		t.Error("a broken id is accepted")
	}
}
