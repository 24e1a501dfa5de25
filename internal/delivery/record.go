package delivery

import (
	"time"

	"github.com/musterfleet/muster"
)

// A Record is what the journal keeps of one command, from its acceptance until
// its final report is stored on the operator's side.
type Record struct {
	Seq        uint64         `json:"seq"` // order of arrival; the journal's key
	Command    muster.Command `json:"command"`
	Idempotent bool           `json:"idempotent,omitempty"` // by its method or its caller
	Starts     int            `json:"starts,omitempty"`     // runs begun, interrupted ones too
	Attempts   int            `json:"attempts,omitempty"`   // runs ended
	NotBefore  time.Time      `json:"not_before,omitzero"`  // of the next attempt
	Signer     Signer         `json:"signer,omitzero"`
	Report     muster.Report  `json:"report"`
}

// A Signer is by which right a command was accepted: the JWT with which the
// caller of its report signed it.
type Signer struct {
	Key    string    `json:"key"` // that the JWT names
	Issued time.Time `json:"issued"`
}

// A Seen is the memory of a command that is over: enough to recognise it if it
// comes again, until its deadline alone would stop it.
type Seen struct {
	Seq      uint64 // of its record; the journal's key
	Key      uint64 // KeyOf its id
	Content  uint64 // Content of it, 0 when that is not known
	Issued   uint32 // Seconds
	Deadline uint32 // Seconds
	Caller   string // empty when that is not known
}

// A Forgotten says which commands of a caller may have run though they are not
// remembered: those that were issued until a time and due until another.
type Forgotten struct {
	Caller   string `json:"caller"` // empty: it holds for all
	Issued   uint32 `json:"issued"` // Seconds
	Deadline uint32 `json:"deadline"`
}

// A Mark says how far the node has read a stream of the broker.
type Mark struct {
	Stream string `json:"stream"`
	Seq    uint64 `json:"seq"` // the highest of the stream that was taken in
}

// A Withdrawal is a cancel that arrived before its command, or during a run
// that an interruption of the agent would repeat. One command can have several,
// of different callers.
type Withdrawal struct {
	ID     muster.CommandID `json:"id"`
	Caller string           `json:"caller"`
	Any    bool             `json:"any,omitempty"` // policy lets the caller cancel what others sent
	Reason string           `json:"reason,omitempty"`
	Until  time.Time        `json:"until"`
}

// Matches reports whether the withdrawal applies to a command of the caller.
func (w Withdrawal) Matches(caller string) bool { return w.Any || w.Caller == caller }

// A Write is one change of the journal. Exactly one field is set.
type Write struct {
	Put        *Record
	Delete     uint64 // sequence of a record that is over
	Remember   *Seen
	Forget     uint64     // sequence of a Seen
	Forgot     *Forgotten // in place of that caller's before; without times, that one goes
	Read       *Mark
	Withdraw   *Withdrawal
	Unwithdraw muster.CommandID // all withdrawals of a command
}

// State is the journal's content, as read when a node starts.
type State struct {
	Records     []Record // any order
	Seen        []Seen   // in the order of their sequence
	Forgotten   []Forgotten
	Read        []Mark
	Withdrawals []Withdrawal
	// Lost is the time at which an earlier journal was found unreadable, zero
	// if that never happened. What was issued before may have run already.
	Lost time.Time
}

// A Delivery is a verified command as it came from the broker.
type Delivery struct {
	Command    muster.Command
	Caller     string
	Signer     Signer
	Rule       string        // of the policy that decided
	Refusal    *muster.Error // not nil: the command must not run, and why
	Idempotent bool
	Token      uint64 // names the delivery in Ready.Acks; 0 for none
	Stored     Mark   // where the broker has it
}

// A Cancel asks that a command not run, or be stopped.
type Cancel struct {
	ID     muster.CommandID
	Caller string
	Any    bool // policy lets the caller cancel what others sent
	Reason string
	Until  time.Time // deadline of the command, after which the cancel is moot
}

// A Start asks for one run of a command.
type Start struct {
	Command muster.Command
	Caller  string
	Attempt int
}

// A Ready is what must be done now, in the order of its fields.
type Ready struct {
	Writes  []Write
	Acks    []uint64
	Starts  []Start
	Stops   []muster.CommandID
	Reports []muster.Report
	Refused []Record // accepted before, and refused by Recheck
}

// Empty reports whether there is nothing to do.
func (r *Ready) Empty() bool {
	return len(r.Writes)+len(r.Acks)+len(r.Starts)+len(r.Stops)+len(r.Reports)+len(r.Refused) == 0
}
