package client

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/bus"
)

// Withdrawals in force for one node.
const maxWithdrawals = 200

// Cancel withdraws a send from the given nodes, or from all of its nodes when
// none are given, and returns of how many. It returns when the withdrawals are
// stored: a node that is away learns of it before it learns of the command.
// What has ended is left alone; of what is only inferred to have ended the node
// may say otherwise, so that it is withdrawn too.
func (c *Client) Cancel(ctx context.Context, id muster.CommandID, nodes []muster.NodeName, reason string) (int, error) {
	if len(reason) > muster.MaxReason {
		return 0, muster.Errorf(muster.Invalid, "the reason has %d bytes; at most %d are allowed", len(reason), muster.MaxReason)
	}
	statuses, err := c.Command(ctx, muster.Key{ID: id})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, s := range statuses {
		if s.State.Final() && !s.Inferred || len(nodes) > 0 && !slices.Contains(nodes, s.Node) {
			continue
		}
		switch err := c.withdraw(ctx, s, reason); muster.KindOf(err) {
		case "":
			n++
		case muster.NotFound: // its node was removed: nobody is there to be told
		default:
			return n, err
		}
	}
	return n, nil
}

// withdraw returns an error of kind NotFound when the node was removed.
func (c *Client) withdraw(ctx context.Context, s Status, reason string) error {
	input, err := json.Marshal(muster.Withdrawal{ID: s.ID, Until: s.Deadline, Reason: reason})
	if err != nil {
		return err
	}
	until := time.Now().Add(time.Minute)
	if s.Deadline.After(until) {
		until = s.Deadline
	}
	b, err := c.sign(Request{Method: muster.MethodCancel, Input: input, Nodes: []muster.NodeName{s.Node}, Deadline: until})
	if err != nil {
		return err
	}
	return c.with(ctx, func(conn *bus.Conn) error {
		box, err := mailbox(ctx, conn, s.Node)
		if err != nil {
			return err
		}
		if removed := s.Inferred && s.State != muster.Expired; removed && box == bus.OpenMailbox {
			return muster.Errorf(muster.NotFound, "node %s was removed", s.Node)
		}
		return addWithdrawal(ctx, conn, conn.Subjects().Control(box, s.Node), s.Node, b.Commands[0].Frame)
	})
}

// addWithdrawal replaces the node's list by one with another frame, unless
// somebody else was faster; then it tries again.
func addWithdrawal(ctx context.Context, conn *bus.Conn, subject string, node muster.NodeName, frame []byte) error {
	for {
		last, err := conn.Last(ctx, bus.StreamControl, subject)
		if err != nil && muster.KindOf(err) != muster.NotFound {
			return err
		}
		frames := inForce(last.Data, time.Now())
		if len(frames) >= maxWithdrawals {
			if frames, err = unheeded(ctx, conn, node, frames); err != nil {
				return err
			}
		}
		if frames = append(frames, json.RawMessage(frame)); len(frames) > maxWithdrawals {
			return muster.Errorf(muster.Full, "%d cancels are waiting for node %s; no more are taken", maxWithdrawals, node).
				WithHint("wait for the node, or for deadlines to pass")
		}
		data, err := json.Marshal(frames)
		if err != nil {
			return err
		}
		err = conn.PutAfter(ctx, bus.Outgoing{Subject: subject, Data: data}, last.Seq)
		if muster.KindOf(err) != muster.Conflict {
			return err
		}
	}
}

// inForce returns the withdrawals of a list whose deadline has not passed. It
// only reads them; nodes verify them.
func inForce(data []byte, now time.Time) []json.RawMessage {
	var frames []json.RawMessage
	if json.Unmarshal(data, &frames) != nil {
		return nil
	}
	return slices.DeleteFunc(frames, func(f json.RawMessage) bool {
		cmd, err := envelopeOf(f)
		return err != nil || now.After(cmd.Deadline)
	})
}

func envelopeOf(f json.RawMessage) (cmd muster.Command, err error) {
	var frame struct {
		Envelope []byte `json:"envelope"`
	}
	if err = json.Unmarshal(f, &frame); err == nil {
		err = json.Unmarshal(frame.Envelope, &cmd)
	}
	return cmd, err
}

// unheeded leaves out what withdraws a command of which the node has said how
// it ended: a withdrawal changes nothing any more then.
func unheeded(ctx context.Context, conn *bus.Conn, node muster.NodeName, frames []json.RawMessage) ([]json.RawMessage, error) {
	var left []json.RawMessage
	for _, f := range frames {
		var w muster.Withdrawal
		cmd, err := envelopeOf(f)
		if err != nil || json.Unmarshal(cmd.Input, &w) != nil || w.ID.Validate() != nil {
			continue // no node takes it for a withdrawal
		}
		key := muster.Key{ID: w.ID, Node: node}
		last, err := conn.Last(ctx, bus.StreamHistory, conn.Subjects().Report(key))
		if err != nil && muster.KindOf(err) != muster.NotFound {
			return nil, err
		}
		var r muster.Report
		over := err == nil && json.Unmarshal(last.Data, &r) == nil && r.Key() == key && r.Seq == len(r.History) && r.State().Final()
		if !over {
			left = append(left, f)
		}
	}
	return left, nil
}
