sortedTable(byId("caches"), {
  input: byId("filter"),
  status: byId("shown"),
  more: byId("more"),
  limit: 200,
});
