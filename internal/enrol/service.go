package enrol

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/internal/aaa"
	"github.com/musterfleet/muster/internal/bus"
	"github.com/musterfleet/muster/internal/config"
)

// A Service admits newcomers and revokes who was removed. There is one in a
// fleet, where the fleet's folder is.
type Service struct {
	Fleet config.FleetFolder
	// UpdateAccount puts the JWT of the nodes' account in force at the broker.
	UpdateAccount func(context.Context, Account) error
	Now           func() time.Time // nil is the clock
	Log           *slog.Logger     // nil is none
	Ready         func()           // nil, or called when newcomers can come
	// Removed is told when a node has been put out; nil, or must not block.
	Removed func(muster.NodeName)

	mu sync.Mutex // held to change members and revocations
}

// Serve works until ctx or the connection ends.
func (s *Service) Serve(ctx context.Context, conn *bus.Conn) error {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		select {
		case <-conn.Done():
			cancel()
		case <-ctx.Done():
		}
	})
	stop, err := conn.Serve(conn.Subjects().Enrol("*"), func(r bus.Request) { s.handle(ctx, conn, r) })
	if err != nil {
		return err
	}
	defer stop()
	if s.Ready != nil {
		s.Ready()
	}
	return conn.Records(ctx, "remove.>", true, func(m bus.Stored) error { return s.removed(ctx, m) })
}

func (s *Service) handle(ctx context.Context, conn *bus.Conn, r bus.Request) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	prefix := conn.Subjects().Enrol("")
	id := strings.TrimPrefix(r.Subject, prefix)
	// This service may publish to subjects that the newcomer may not.
	if !bus.Foreign(r.Reply) && !strings.HasPrefix(r.Reply, bus.EnrolInbox(id)+".") {
		s.Log.Warn("a newcomer wants its answer on a subject that is not its own; it gets none", "component", "enrol", "token", id, "reply", r.Reply)
		return
	}
	token, node, err := s.admit(ctx, conn, id, r.Data)
	a := answer{JWT: token}
	if err != nil {
		s.Log.Warn("a newcomer was refused", "component", "enrol", "token", id, "node", node, "err", err)
		a.Error = muster.AsError(muster.Internal, err)
	} else {
		s.Log.Info("a node has joined", "component", "enrol", "token", id, "node", node)
	}
	data, err := json.Marshal(a)
	if err == nil {
		err = r.Respond(data)
	}
	if err != nil {
		s.Log.Warn("a newcomer could not be answered; it will ask again", "component", "enrol", "token", id, "err", err)
	}
}

// admit decides about one request and signs the newcomer's JWT.
func (s *Service) admit(ctx context.Context, conn *bus.Conn, id string, data []byte) (token string, node muster.NodeName, err error) {
	var r request
	if len(data) > maxRequest || json.Unmarshal(data, &r) != nil || !nkeys.IsValidPublicUserKey(r.PublicKey) {
		return "", "", muster.Errorf(muster.Invalid, "the request to join cannot be read")
	}
	var v invitation
	for {
		v = invitation{}
		key := "invite." + id
		seq, err := get(ctx, conn, key, &v)
		if err != nil {
			return "", "", err
		}
		next, refusal := v.present(r, s.Now())
		if v.Node != "" {
			removed, err := lastRemoval(ctx, conn, v.Node)
			if err != nil {
				return "", v.Node, err
			}
			if removed > seq {
				return "", v.Node, refusedf("the node was removed after it was invited")
			}
		}
		if next != nil {
			err := put(ctx, conn, key, next, seq)
			if muster.KindOf(err) == muster.Conflict {
				continue // another request was first
			}
			if err != nil {
				return "", v.Node, err
			}
		}
		if refusal != nil {
			return "", v.Node, refusal
		}
		if err := s.enter(ctx, conn, v.Node, r.PublicKey, seq); err != nil {
			return "", v.Node, err
		}
		break
	}
	token, err = s.credentials(ctx, conn, v.Node, r.PublicKey)
	return token, v.Node, err
}

// credentials signs a node's JWT, with the mailbox that its invitation gave it.
func (s *Service) credentials(ctx context.Context, conn *bus.Conn, node muster.NodeName, public string) (string, error) {
	var r NodeRecord
	if _, err := get(ctx, conn, "node."+string(node), &r); err != nil {
		return "", err
	}
	if r.Mailbox == "" {
		return "", refusedf("the node was removed after it was invited")
	}
	spec := UserSpec(string(node), public, bus.NodePermissions(s.Fleet.Fleet.Prefix, r.Mailbox, node), time.Time{})
	return s.Fleet.Keys.NodeUserJWT(spec, s.Now())
}

// present says what becomes of the invitation when a request comes: the
// record to write (nil: it stays) and why the request is refused (nil: it is
// not).
func (v invitation) present(r request, now time.Time) (next *invitation, refusal error) {
	// Whether a token exists is told to nobody who cannot show its secret.
	var hash [sha256.Size]byte
	known := len(v.Secret) == len(hash) && copy(hash[:], v.Secret) == len(hash)
	right := aaa.CheckSecret(aaa.NewSecret(r.Secret), hash) && known
	switch {
	case v.Void != "" && known:
		return nil, refusedf("the token is void: %s", v.Void)
	case !right && known && v.UsedBy == "":
		v.Failures++
		if v.Failures >= MaxFailures {
			v.Void = "too many wrong secrets were presented"
		}
		return &v, refusedf("the token is not valid")
	case !right:
		return nil, refusedf("the token is not valid")
	case !now.Before(v.Expires):
		return nil, refusedf("the token expired at %s", v.Expires.Format(time.RFC3339))
	case v.UsedBy != "" && v.UsedBy != r.PublicKey:
		return nil, refusedf("the token was used at %s", v.UsedAt.Format(time.RFC3339))
	case v.UsedBy == r.PublicKey:
		return nil, nil
	}
	v.UsedBy, v.UsedAt = r.PublicKey, now.UTC()
	return &v, nil
}

func refusedf(format string, args ...any) error {
	return muster.Errorf(muster.Denied, format, args...).WithHint("make a new token with 'muster node invite NAME'")
}

// enter records the member. The key with which the node joined before is
// revoked: there is one machine of a name. seq is that of the invitation when
// it was read; a removal that came after it undoes the admission.
func (s *Service) enter(ctx context.Context, conn *bus.Conn, node muster.NodeName, public string, seq uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	members, err := s.Fleet.Members()
	if err != nil {
		return err
	}
	if old := members[string(node)]; old.PublicKey != public {
		m := config.Member{PublicKey: public, Joined: s.Now().UTC(), Removal: seq}
		if old.PublicKey != "" { // first: otherwise a crash between the two would leave the old key in force
			if err := s.revoke(ctx, old.PublicKey); err != nil {
				return err
			}
			s.Log.Info("the node joins anew; its former credentials are revoked", "component", "enrol", "node", node)
		}
		if err := s.Fleet.SetMember(string(node), m); err != nil {
			return err
		}
	}
	removed, err := lastRemoval(ctx, conn, node)
	if err == nil && removed > seq {
		err = cmp.Or(s.revoke(ctx, public), refusedf("the node was removed after it was invited"))
	}
	return err
}

// removed handles one order to remove a node, perhaps again.
func (s *Service) removed(ctx context.Context, m bus.Stored) error {
	node := strings.TrimPrefix(m.Subject, "remove.")
	if !isRemoval(m.Data) {
		s.Log.Warn("a record that is no order to remove a node is ignored", "component", "enrol", "node", node)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	members, err := s.Fleet.Members()
	if err != nil {
		return err
	}
	old := members[node]
	if old.PublicKey == "" || m.Seq <= old.Removal {
		return nil // it never joined, or has joined again since
	}
	if err := s.revoke(ctx, old.PublicKey); err != nil {
		return err
	}
	s.Log.Info("a node was removed; its credentials are revoked", "component", "enrol", "node", node)
	if s.Removed != nil {
		s.Removed(muster.NodeName(node))
	}
	return nil
}

// revoke is done when the broker knows. It may be done twice. s.mu is held.
func (s *Service) revoke(ctx context.Context, public string) error {
	all, err := s.Fleet.Revocations()
	if err != nil {
		return err
	}
	if _, done := all[public]; !done {
		if err := s.Fleet.Revoke(public, s.Now()); err != nil {
			return err
		}
	}
	_, nodes, err := Accounts(s.Fleet, s.Now())
	if err != nil {
		return err
	}
	return s.UpdateAccount(ctx, nodes)
}
