package cli

import (
	"context"
	"io"
	"time"

	"github.com/musterfleet/muster"
	"github.com/musterfleet/muster/client"
	"github.com/musterfleet/muster/internal/app"
)

// SDK is what the command line uses of a client.
type SDK interface {
	Close()
	Nodes(ctx context.Context) ([]client.Node, error)
	Away(ctx context.Context, nodes []muster.NodeName) (map[muster.NodeName]time.Time, error)
	Select(ctx context.Context, expr string) ([]client.Node, error)
	CountWaiting(ctx context.Context, nodes []client.Node) error
	Send(ctx context.Context, r client.Request) (client.Receipt, error)
	Follow(ctx context.Context, id muster.CommandID, handle func(client.Update) error) error
	FollowStates(ctx context.Context, id muster.CommandID, handle func(client.Update) error) error
	History(ctx context.Context, q client.HistoryQuery) ([]client.Status, error)
	Command(ctx context.Context, key muster.Key) ([]client.Status, error)
	Output(ctx context.Context, s client.Status, stream string, w io.Writer) error
	Cancel(ctx context.Context, id muster.CommandID, nodes []muster.NodeName, reason string) (int, error)
	Events(ctx context.Context, q client.EventQuery, handle func(client.Event) error) error
	DeadLetters(ctx context.Context, node muster.NodeName) ([]client.DeadLetter, error)
	DeadLetterCount(ctx context.Context) (uint64, error)
	Requeue(ctx context.Context, seq uint64) error
	DropDeadLetter(ctx context.Context, seq uint64) error
	SetLabels(ctx context.Context, node muster.NodeName, set map[string]string, remove []string) error
	RemoveNode(ctx context.Context, node muster.NodeName) error
	FlushOutbox(ctx context.Context) (sent int, err error)
	Outbox() ([]client.Waiting, error)
	Check(ctx context.Context) client.Health
}

// Backend is what the command line does besides using a client.
type Backend interface {
	Connect(ctx context.Context, contextName string) (SDK, error)
	Init(o app.InitOptions) (app.InitResult, error)
	RunBroker(ctx context.Context, o app.BrokerOptions, ready func(app.BrokerInfo)) error
	RunService(ctx context.Context, o app.ServiceOptions, ready func()) error
	ServerConfig(dir string) ([]byte, error)
	RenewCertificate(dir string, more []string) (app.Certificate, error)
	AddOperator(o app.OperatorOptions) error
	Callers(dir string) (all []app.Caller, partial bool, err error)
	RevokeCallers(ctx context.Context, o app.RevokeOptions) (app.RevokeResult, error)
	Invite(ctx context.Context, o app.InviteOptions) (string, error)
	Reshard(ctx context.Context, o app.ReshardOptions) error
	RunAgent(ctx context.Context, o app.AgentOptions) error
	RunDev(ctx context.Context, o app.DevOptions) error
}

var (
	_ SDK     = (*client.Client)(nil)
	_ Backend = application{}
)

// application is the real Backend.
type application struct{}

func (application) Connect(ctx context.Context, name string) (SDK, error) {
	o, err := app.ClientOptions(name)
	if err != nil {
		return nil, err
	}
	c, err := client.Connect(ctx, o)
	if err != nil {
		return nil, err // not c: a nil pointer in an interface is not nil
	}
	return c, nil
}

func (application) Init(o app.InitOptions) (app.InitResult, error) { return app.Init(o) }

func (application) RunBroker(ctx context.Context, o app.BrokerOptions, ready func(app.BrokerInfo)) error {
	return app.RunBroker(ctx, o, ready)
}

func (application) RunService(ctx context.Context, o app.ServiceOptions, ready func()) error {
	return app.RunService(ctx, o, ready)
}

func (application) ServerConfig(dir string) ([]byte, error) { return app.ServerConfig(dir) }

func (application) Reshard(ctx context.Context, o app.ReshardOptions) error {
	return app.Reshard(ctx, o)
}

func (application) RenewCertificate(dir string, more []string) (app.Certificate, error) {
	return app.RenewCertificate(dir, more)
}

func (application) AddOperator(o app.OperatorOptions) error { return app.AddOperator(o) }

func (application) Callers(dir string) ([]app.Caller, bool, error) { return app.Callers(dir) }

func (application) RevokeCallers(ctx context.Context, o app.RevokeOptions) (app.RevokeResult, error) {
	return app.RevokeCallers(ctx, o)
}

func (application) Invite(ctx context.Context, o app.InviteOptions) (string, error) {
	return app.Invite(ctx, o)
}

func (application) RunAgent(ctx context.Context, o app.AgentOptions) error {
	return app.RunAgent(ctx, o)
}

func (application) RunDev(ctx context.Context, o app.DevOptions) error { return app.RunDev(ctx, o) }
