// Drives the Go SDK by commands on stdin; ../drivers/driver.js is its twin. A command names one
// client by `key`; what that client hears goes out on stdout as events. The SDK gives and takes
// bytes: data that is JSON is told as `data`, anything else as `b64data`.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/centrifugal/centrifuge-go"
)

type object = map[string]any

const (
	minDelay = 20 * time.Millisecond
	maxDelay = 200 * time.Millisecond
	// The SDK's own timeouts are one second and more; a busy machine needs longer.
	patience = 20 * time.Second
)

var output sync.Mutex

func emit(value any) {
	line, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	output.Lock()
	defer output.Unlock()
	fmt.Printf("%s\n", line)
}

// value is what a test sees of bytes that must be JSON, or nil without any.
func value(data []byte) any {
	if len(data) == 0 {
		return nil
	}
	return json.RawMessage(data)
}

func payload(told object, data []byte) object {
	if json.Valid(data) {
		told["data"] = json.RawMessage(data)
	} else {
		told["b64data"] = data
	}
	return told
}

func info(one *centrifuge.ClientInfo) any {
	if one == nil {
		return nil
	}
	return object{
		"user": one.User, "client": one.Client,
		"conn_info": value(one.ConnInfo), "chan_info": value(one.ChanInfo),
	}
}

func publication(one centrifuge.Publication) object {
	tags := one.Tags
	if tags == nil {
		tags = map[string]string{}
	}
	told := object{"offset": one.Offset, "tags": tags, "info": info(one.Info)}
	return payload(told, one.Data)
}

func position(one *centrifuge.StreamPosition) any {
	if one == nil {
		return nil
	}
	return object{"offset": one.Offset, "epoch": one.Epoch}
}

func subscribed(one centrifuge.SubscribedEvent) object {
	return object{
		"recoverable": one.Recoverable, "positioned": one.Positioned,
		"position":       position(one.StreamPosition),
		"was_recovering": one.WasRecovering, "recovered": one.Recovered, "data": value(one.Data),
	}
}

func coded(code uint32, reason string) object {
	return object{"code": code, "reason": reason}
}

// failed names the text as events do; answers name it `message`.
func failed(err error) object {
	var refused *centrifuge.Error
	if errors.As(err, &refused) {
		return coded(refused.Code, refused.Message)
	}
	return object{"code": -1, "reason": err.Error()}
}

// options are those of a client and of a subscription together.
type options struct {
	Token       string          `json:"token"`
	Tokens      []string        `json:"tokens"`
	Data        json.RawMessage `json:"data"`
	Positioned  bool            `json:"positioned"`
	Recoverable bool            `json:"recoverable"`
	JoinLeave   bool            `json:"join_leave"`
	Delta       string          `json:"delta"`
	TagsFilter  *filter         `json:"tags_filter"`
	// Of a read of history.
	Limit   int32                      `json:"limit"`
	Since   *centrifuge.StreamPosition `json:"since"`
	Reverse bool                       `json:"reverse"`
}

type command struct {
	ID       int             `json:"id"`
	Call     string          `json:"call"`
	Key      string          `json:"key"`
	URL      string          `json:"url"`
	Protobuf bool            `json:"protobuf"`
	Channel  string          `json:"channel"`
	Method   string          `json:"method"`
	Data     json.RawMessage `json:"data"`
	B64data  []byte          `json:"b64data"`
	Options  options         `json:"options"`
}

func (c command) payload() []byte {
	if c.B64data != nil {
		return c.B64data
	}
	return c.Data
}

// filter is a tags filter as the protocol writes it.
type filter struct {
	Op    string    `json:"op"`
	Key   string    `json:"key"`
	Cmp   string    `json:"cmp"`
	Val   string    `json:"val"`
	Vals  []string  `json:"vals"`
	Nodes []*filter `json:"nodes"`
}

var comparisons = map[string]func(key, val string) *centrifuge.FilterNode{
	"eq": centrifuge.FilterEq, "neq": centrifuge.FilterNeq,
	"sw": centrifuge.FilterStartsWith, "ew": centrifuge.FilterEndsWith, "ct": centrifuge.FilterContains,
	"gt": centrifuge.FilterGt, "gte": centrifuge.FilterGte,
	"lt": centrifuge.FilterLt, "lte": centrifuge.FilterLte,
}

// node is the filter in the SDK's own form.
func (f *filter) node() *centrifuge.FilterNode {
	if f == nil {
		return nil
	}
	nodes := make([]*centrifuge.FilterNode, len(f.Nodes))
	for i, one := range f.Nodes {
		nodes[i] = one.node()
	}
	switch f.Op {
	case "and":
		return centrifuge.FilterAnd(nodes...)
	case "or":
		return centrifuge.FilterOr(nodes...)
	case "not":
		return centrifuge.FilterNot(nodes[0])
	}
	return comparisons[f.Cmp](f.Key, f.Val)
}

// fromList gives the tokens one after the other, and says so each time.
func fromList(tokens []string, about object) func() (string, error) {
	var lock sync.Mutex
	return func() (string, error) {
		lock.Lock()
		defer lock.Unlock()
		tell("token", about, object{})
		if len(tokens) == 0 {
			return "", centrifuge.ErrUnauthorized
		}
		token := tokens[0]
		tokens = tokens[1:]
		return token, nil
	}
}

func tell(event string, about, what object) {
	told := object{"event": event}
	for _, part := range []object{about, what} {
		for name, one := range part {
			told[name] = one
		}
	}
	emit(told)
}

type driver struct {
	lock    sync.Mutex
	clients map[string]*centrifuge.Client
}

func (d *driver) client(key string) *centrifuge.Client {
	d.lock.Lock()
	defer d.lock.Unlock()
	return d.clients[key]
}

func (d *driver) open(c command) {
	config := centrifuge.Config{
		Token: c.Options.Token, Data: c.Options.Data,
		MinReconnectDelay: minDelay, MaxReconnectDelay: maxDelay,
		ReadTimeout: patience, WriteTimeout: patience, HandshakeTimeout: patience,
		// The other SDKs offer it by themselves.
		EnableCompression: true,
		Proxy:             func(*http.Request) (*url.URL, error) { return nil, nil },
	}
	about := object{"key": c.Key}
	if c.Options.Tokens != nil {
		next := fromList(c.Options.Tokens, about)
		config.GetToken = func(centrifuge.ConnectionTokenEvent) (string, error) { return next() }
	}
	make := centrifuge.NewJsonClient
	if c.Protobuf {
		make = centrifuge.NewProtobufClient
	}
	client := make(c.URL, config)
	listen(client, about)
	listenToServerSide(client, c.Key)
	d.lock.Lock()
	defer d.lock.Unlock()
	d.clients[c.Key] = client
}

func listen(client *centrifuge.Client, about object) {
	client.OnConnecting(func(one centrifuge.ConnectingEvent) {
		tell("connecting", about, coded(one.Code, one.Reason))
	})
	client.OnConnected(func(one centrifuge.ConnectedEvent) {
		tell("connected", about, object{"id": one.ClientID, "data": value(one.Data)})
	})
	client.OnDisconnected(func(one centrifuge.DisconnectedEvent) {
		tell("disconnected", about, coded(one.Code, one.Reason))
	})
	client.OnMessage(func(one centrifuge.MessageEvent) {
		tell("message", about, payload(object{}, one.Data))
	})
	client.OnError(func(one centrifuge.ErrorEvent) { tell("error", about, failed(one.Error)) })
}

// Server-side subscriptions are told of by the client.
func listenToServerSide(client *centrifuge.Client, key string) {
	in := func(channel string) object { return object{"key": key, "channel": channel} }
	client.OnSubscribing(func(one centrifuge.ServerSubscribingEvent) {
		tell("subscribing", in(one.Channel), object{})
	})
	client.OnSubscribed(func(one centrifuge.ServerSubscribedEvent) {
		tell("subscribed", in(one.Channel), subscribed(centrifuge.SubscribedEvent{
			Positioned: one.Positioned, Recoverable: one.Recoverable, StreamPosition: one.StreamPosition,
			WasRecovering: one.WasRecovering, Recovered: one.Recovered, Data: one.Data,
		}))
	})
	client.OnUnsubscribed(func(one centrifuge.ServerUnsubscribedEvent) {
		tell("unsubscribed", in(one.Channel), object{})
	})
	client.OnPublication(func(one centrifuge.ServerPublicationEvent) {
		tell("publication", in(one.Channel), publication(one.Publication))
	})
	client.OnJoin(func(one centrifuge.ServerJoinEvent) {
		tell("join", in(one.Channel), object{"info": info(&one.ClientInfo)})
	})
	client.OnLeave(func(one centrifuge.ServerLeaveEvent) {
		tell("leave", in(one.Channel), object{"info": info(&one.ClientInfo)})
	})
}

func subscribe(client *centrifuge.Client, c command) error {
	subscription, known := client.GetSubscription(c.Channel)
	if !known {
		about := object{"key": c.Key, "channel": c.Channel}
		config := centrifuge.SubscriptionConfig{
			Token: c.Options.Token, Data: c.Options.Data,
			Positioned: c.Options.Positioned, Recoverable: c.Options.Recoverable,
			JoinLeave: c.Options.JoinLeave, Delta: centrifuge.DeltaType(c.Options.Delta),
			TagsFilter:          c.Options.TagsFilter.node(),
			MinResubscribeDelay: minDelay, MaxResubscribeDelay: maxDelay,
		}
		if c.Options.Tokens != nil {
			next := fromList(c.Options.Tokens, about)
			config.GetToken = func(centrifuge.SubscriptionTokenEvent) (string, error) { return next() }
		}
		made, err := client.NewSubscription(c.Channel, config)
		if err != nil {
			return err
		}
		listenTo(made, about)
		subscription = made
	}
	return subscription.Subscribe()
}

func listenTo(subscription *centrifuge.Subscription, about object) {
	subscription.OnSubscribing(func(one centrifuge.SubscribingEvent) {
		tell("subscribing", about, coded(one.Code, one.Reason))
	})
	subscription.OnSubscribed(func(one centrifuge.SubscribedEvent) {
		tell("subscribed", about, subscribed(one))
	})
	subscription.OnUnsubscribed(func(one centrifuge.UnsubscribedEvent) {
		tell("unsubscribed", about, coded(one.Code, one.Reason))
	})
	subscription.OnPublication(func(one centrifuge.PublicationEvent) {
		tell("publication", about, publication(one.Publication))
	})
	subscription.OnJoin(func(one centrifuge.JoinEvent) {
		tell("join", about, object{"info": info(&one.ClientInfo)})
	})
	subscription.OnLeave(func(one centrifuge.LeaveEvent) {
		tell("leave", about, object{"info": info(&one.ClientInfo)})
	})
	subscription.OnError(func(one centrifuge.SubscriptionErrorEvent) {
		tell("error", about, failed(one.Error))
	})
}

// ask makes a call of the client and gives what a test sees of its result.
func ask(client *centrifuge.Client, c command) (any, error) {
	ctx := context.Background() // The SDK's own timeout ends a call.
	switch c.Call {
	case "connect":
		return nil, client.Connect()
	case "disconnect":
		return nil, client.Disconnect()
	case "subscribe":
		return nil, subscribe(client, c)
	case "unsubscribe":
		subscription, known := client.GetSubscription(c.Channel)
		if !known {
			return nil, errors.New("there is no such subscription")
		}
		return nil, subscription.Unsubscribe()
	case "publish":
		_, err := client.Publish(ctx, c.Channel, c.payload())
		return nil, err
	case "history":
		return history(ctx, client, c)
	case "presence":
		result, err := client.Presence(ctx, c.Channel)
		present := object{}
		for id, one := range result.Clients {
			present[id] = info(&one)
		}
		return present, err
	case "presence_stats":
		result, err := client.PresenceStats(ctx, c.Channel)
		return object{"num_clients": result.NumClients, "num_users": result.NumUsers}, err
	case "rpc":
		result, err := client.RPC(ctx, c.Method, c.payload())
		return payload(object{}, result.Data), err
	case "send":
		return nil, client.Send(ctx, c.payload())
	}
	return nil, fmt.Errorf("unknown call %s", c.Call)
}

func history(ctx context.Context, client *centrifuge.Client, c command) (any, error) {
	result, err := client.History(
		ctx, c.Channel,
		centrifuge.WithHistoryLimit(c.Options.Limit),
		centrifuge.WithHistorySince(c.Options.Since),
		centrifuge.WithHistoryReverse(c.Options.Reverse),
	)
	publications := make([]object, len(result.Publications))
	for i, one := range result.Publications {
		publications[i] = publication(one)
	}
	return object{"publications": publications, "offset": result.Offset, "epoch": result.Epoch}, err
}

func (d *driver) handle(c command) (any, error) {
	switch c.Call {
	case "open":
		d.open(c)
		return nil, nil
	case "close":
		client := d.client(c.Key)
		d.lock.Lock()
		delete(d.clients, c.Key)
		d.lock.Unlock()
		client.Close()
		return nil, nil
	}
	return ask(d.client(c.Key), c)
}

func (d *driver) answer(c command) {
	result, err := d.handle(c)
	if err != nil {
		why := failed(err)
		emit(object{"id": c.ID, "error": object{"code": why["code"], "message": why["reason"]}})
		return
	}
	emit(object{"id": c.ID, "result": result})
}

func main() {
	d := driver{clients: map[string]*centrifuge.Client{}}
	emit("ready")
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<24)
	for input.Scan() {
		var c command
		if err := json.Unmarshal(input.Bytes(), &c); err != nil {
			panic(err)
		}
		go d.answer(c)
	}
}
