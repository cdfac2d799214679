// Keeps the page of a run fresh until the run has ended. Everything that comes from the server goes in as text.
"use strict";
{
    const box = document.getElementById("snapshots-run");
    const EVERY = 1000;

    const at = (id) => document.getElementById(`snapshots-${id}`);

    function say(element, text) {
        element.textContent = text;
        element.hidden = !text;
    }

    function badge(element, state, label) {
        element.className = `snapshots-badge snapshots-${state}`;
        element.textContent = label;
    }

    function cell(tag, text, className) {
        const made = document.createElement(tag);
        if (tag === "th") {
            made.scope = "row";
        }
        made.className = className || "";
        made.textContent = text;
        return made;
    }

    function row(step) {
        const made = document.createElement("tr");
        const state = cell("td", "");
        badge(state.appendChild(document.createElement("span")), step.state, step.label);
        made.append(
            cell("th", step.what),
            state,
            cell("td", step.bytes, "snapshots-number"),
            cell("td", step.started),
            cell("td", step.duration),
            cell("td", step.holder),
            cell("td", step.attempts, "snapshots-number"),
            cell("td", step.alive),
            cell("td", step.error, "snapshots-reason"),
        );
        return made;
    }

    // Only what differs is written: a screen reader reads a changed status aloud.
    function headline(run) {
        if (at("state").textContent !== run.label) {
            badge(at("state"), run.state, run.label);
        }
        if (at("headline").textContent !== run.headline) {
            at("headline").textContent = run.headline;
        }
    }

    function show(run) {
        headline(run);
        at("bar").max = run.total || 1;
        at("bar").value = run.done;
        at("bar").hidden = run.final;
        say(at("error"), run.error);
        say(at("cancel"), run.cancel);
        // Not there for who may not cancel.
        if (at("cancelling")) {
            at("cancelling").hidden = !run.cancellable;
        }
        at("lines").replaceChildren(...run.lines.map((line) => cell("li", line)));
        at("lines").hidden = run.lines.length === 0;
        at("steps").tBodies[0].replaceChildren(...run.steps.map(row));
        at("link").hidden = !run.snapshot;
        if (run.snapshot) {
            at("link").firstElementChild.href = run.snapshot;
            at("link").firstElementChild.textContent = `Snapshot ${run.name}`;
        }
        at("undo").hidden = !run.undo;
        if (run.undo) {
            at("undo").firstElementChild.href = run.undo;
        }
    }

    async function look() {
        const response = await fetch(box.dataset.url, {credentials: "same-origin", headers: {Accept: "application/json"}});
        if (response.redirected || response.status === 403) {
            say(at("trouble"), "You are no longer logged in; a restore brings the sessions back as they were, too. " +
                "Load this page anew to log in.");
            return true;
        }
        if (!response.ok) {
            throw new Error(`status ${response.status}`);
        }
        const run = await response.json();
        say(at("trouble"), "");
        show(run);
        return run.final;
    }

    async function follow() {
        let ended = false;
        try {
            ended = await look();
        } catch (error) {
            say(at("trouble"), `The server does not answer (${error.message}). The run goes on; trying again.`);
        }
        if (!ended) {
            setTimeout(follow, EVERY);
        }
    }

    if (box && !("final" in box.dataset)) {
        follow();
    }
}
